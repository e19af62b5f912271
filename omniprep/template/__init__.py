"""Turns a row into text, loss weights and tokens as ms-swift 3.9.3's template does; pure functions."""
