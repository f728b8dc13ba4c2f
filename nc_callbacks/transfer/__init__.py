"""Heads of class means, features of a backbone, and a backbone chosen without training (`rank_sources`)."""

from nc_callbacks.transfer.ranking import SourceScore, rank_sources

__all__ = ["SourceScore", "rank_sources"]
