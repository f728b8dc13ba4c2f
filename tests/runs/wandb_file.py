"""Reads what W&B wrote offline: records as protobuf messages in LevelDB's log format, after a header of 7 bytes."""

import struct
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read(path: Path) -> list[Record]:
    """The records of a ``run-….wandb`` file."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    records, parts, place = [], [], 7
    while place < len(content):
        room = BLOCK - place % BLOCK
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        assert kind in (FULL, FIRST, MIDDLE, LAST)
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (FULL, LAST):
            records.append(Record.FromString(b"".join(parts)))
            parts = []
    return records


def key(item) -> str:
    """Log key of an item of a history or config record."""
    return item.key or "/".join(item.nested_key)
