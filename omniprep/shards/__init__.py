"""Shards: the Arrow files that a build writes, and the tables that say where in them a bin or a row is."""
