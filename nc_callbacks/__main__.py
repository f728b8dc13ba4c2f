"""The command ``nc-callbacks``, also ``python -m nc_callbacks``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

import nc_callbacks


class Command(NamedTuple):
    """A module with a function ``main`` that reads `sys.argv`."""

    module: str
    help: str


COMMANDS = {
    "train": Command("nc_callbacks.experiments.train", "train a classifier, or many with -m; the rest goes to Hydra"),
    "report": Command("nc_callbacks.report.__main__", "write the page of a run or a sweep"),
    "rank": Command("nc_callbacks.experiments.rank", "rank backbones for a target without training"),
    "dashboard": Command("nc_callbacks.dashboard", "make the W&B workspace of the metrics"),
}

EXTRAS = {
    **dict.fromkeys(["hydra", "omegaconf", "torchvision", "sklearn", "scipy"], "experiments"),
    **dict.fromkeys(["matplotlib", "rich", "tensorboard", "wandb"], "experiments"),
    "wandb_workspaces": "dashboard",
}
"""The extra that installs a module."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Its name and what is for it; from the command line by default.

    Returns:
        Exit status.
    """
    name, *rest = arguments if arguments is not None else sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(nc_callbacks.__version__)
        return 0
    if name not in COMMANDS:
        near = "".join(f" Did you mean {match}?" for match in get_close_matches(name, COMMANDS, n=1))
        print(f"Expected one of {', '.join(COMMANDS)}; got {name!r}.{near}", file=sys.stderr)
        return 2
    # Hydra reads overrides on one side of a flag only.
    sys.argv[1:] = sorted(rest, key=lambda word: word not in ("-m", "--multirun"))
    try:
        return importlib.import_module(COMMANDS[name].module).main() or 0
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        print(f"{name} needs {package}: pip install 'nc-callbacks[{EXTRAS[package]}]'.", file=sys.stderr)
        return 1


def usage() -> str:
    """What the command prints without arguments."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: nc-callbacks COMMAND ...", "", *lines, "", "nc-callbacks COMMAND --help says more."])


if __name__ == "__main__":
    sys.exit(main())
