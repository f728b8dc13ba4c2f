"""One look at a model: what is asked for, who looks, the passes over the data, and what was found."""
