"""``python -m nc_callbacks.transfer rank ...``: the command of `nc_callbacks.experiments.rank`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Its exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m nc_callbacks.transfer")
    parser.add_argument("command", choices=["rank"], help="rank backbones for a target without training")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="see rank --help")
    given = parser.parse_args(arguments)

    from nc_callbacks.experiments import rank

    return rank.main(given.rest)


if __name__ == "__main__":
    sys.exit(main())
