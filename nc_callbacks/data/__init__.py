"""A trainer's data: loaders of one's own over the same samples, and what reading them must leave untouched."""
