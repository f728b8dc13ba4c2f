"""Files that a run or a sweep of the training script leaves behind, and how they are read again."""
