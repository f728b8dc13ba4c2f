"""Sizes with units, and what several callbacks want of one layer."""

import pytest

from nc_callbacks.engine.request import LayerNeeds, parse_bytes


@pytest.mark.parametrize(
    ("size", "expected"), [(7, 7), ("7", 7), ("512MiB", 2**29), ("2 GB", 2 * 10**9), ("1.5kib", 1536)]
)
def test_parse_bytes(size, expected):
    assert parse_bytes(size) == expected


@pytest.mark.parametrize("averaged", [True, False, None])
def test_who_does_not_mind_takes_what_the_other_wants(averaged):
    wanting = LayerNeeds(averaged=averaged)
    assert (wanting | LayerNeeds()).averaged is averaged
    assert (LayerNeeds() | wanting).averaged is averaged
    assert (wanting | wanting).averaged is averaged
    with pytest.raises(ValueError, match="name it, or give the pattern, in both"):
        LayerNeeds(averaged=True) | LayerNeeds(averaged=False)


def test_needs_of_both_are_met():
    pooled = LayerNeeds("pooled", nearest_mean=True)
    assert pooled | LayerNeeds("per_class", whitened=True) == LayerNeeds("per_class", True, None, True)
