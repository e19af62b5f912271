"""Rows that crash or stall a worker are found and rejected, not the build."""
