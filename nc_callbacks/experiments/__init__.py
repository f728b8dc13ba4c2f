"""Data, models and losses that `train.py` composes. Needs the extra ``experiments``."""
