"""Sizes with units."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(size: int | str) -> int:
    """Bytes of a number or a string such as ``"512MiB"`` or ``"2 GB"``.

    Raises:
        ValueError: It is neither.

    Example:
        >>> parse_bytes("1.5KiB")
        1536
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([a-zA-Z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f'feature_cache must be a number of bytes or a string such as "512MiB", got {size!r}.')
    return int(float(match[1]) * _UNITS[match[2].upper()])
