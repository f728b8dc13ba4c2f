"""What a run or a sweep of the training script leaves behind, and how it is read again."""
