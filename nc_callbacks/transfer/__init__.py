"""Choosing a backbone without training: `rank_sources`, or ``python -m nc_callbacks.transfer rank``."""

from nc_callbacks.transfer.ranking import SourceScore, rank_sources

__all__ = ["SourceScore", "rank_sources"]
