"""`python -m nc_callbacks.report RUN_OR_SWEEP` writes the page of a run or a sweep into its folder."""

from __future__ import annotations

import argparse
import sys

import nc_callbacks.report as report


def main(arguments: list[str] | None = None) -> int:
    """Write the page and print where it is.

    Returns:
        0, or 1 where the folder cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m nc_callbacks.report", description=__doc__)
    parser.add_argument("folder", metavar="RUN_OR_SWEEP", help="a folder that train.py left: a run's or a sweep's")
    try:
        print(report.write_report(parser.parse_args(arguments).folder))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"No page: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
