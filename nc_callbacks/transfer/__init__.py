"""Heads of class means, features of a backbone, and a backbone chosen without training (`rank_sources`)."""

from nc_callbacks.transfer.ranking import Ranking, SourceScore, rank_sources

__all__ = ["Ranking", "SourceScore", "rank_sources"]
