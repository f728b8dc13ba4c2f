"""The state of objects: everything that can be reached from them, saved and put back."""
