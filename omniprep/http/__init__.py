"""The one client for http and https, and files on web servers for fsspec."""
