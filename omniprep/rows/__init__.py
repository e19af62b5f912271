"""Raw rows of any shape, read from anywhere, made into one shape."""
