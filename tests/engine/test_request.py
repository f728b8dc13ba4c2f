"""Sizes with units."""

import pytest

from nc_callbacks.engine.request import parse_bytes


@pytest.mark.parametrize(
    ("size", "expected"), [(7, 7), ("7", 7), ("512MiB", 2**29), ("2 GB", 2 * 10**9), ("1.5kib", 1536)]
)
def test_parse_bytes(size, expected):
    assert parse_bytes(size) == expected
