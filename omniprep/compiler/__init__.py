"""The compiler: read and plan, pack, encode, finish; each stage a function of files, run by Ray or in this process."""
