"""Hydra's configuration of the experiments: one folder per group, one file per choice."""
