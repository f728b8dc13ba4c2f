"""Hydra's configuration of the experiments: one folder a group, one file a choice."""
