"""The rows, a file a library."""
