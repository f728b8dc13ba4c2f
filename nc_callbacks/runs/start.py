"""Where a main function is found again by a further process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_FILE = "start.json"
CONFIG_NAME = "config"

WORKER = Path(__file__).absolute().with_name("worker.py")


@dataclass(frozen=True)
class Start:
    """A script, a module that runs itself, or a function in a module; and where modules are looked for.

    It is taken where the function is decorated, in the process that the user has started, and travels with the
    function: launchers pickle functions, and a pickled function's code no longer says where it came from.
    """

    script: str = ""
    """Absolute path of a script; empty for the others."""
    module: str = ""
    function: str = ""
    """Of the module, with dots; empty where the module runs itself, as under ``python -m``."""
    path: tuple[str, ...] = ()
    """`sys.path`, absolute."""

    def command(self, scratch: Path) -> list[str]:
        """Python's arguments that start it in another process, on the configuration that lies in a folder."""
        if self.script:
            return [self.script, *hydra_arguments(scratch)]
        path = list(dict.fromkeys([*absolute_path(), *self.path]))
        what = {"module": self.module, "function": self.function, "path": path}
        Path(scratch, START_FILE).write_text(json.dumps(what))
        return [str(WORKER), str(scratch)]


def start_of(task: Callable[..., Any]) -> Start | None:
    """Where a function is found again; None where it is not, as one of an interactive session."""
    name, function = getattr(task, "__module__", None), getattr(task, "__qualname__", "<locals>")
    path = absolute_path()
    if name != "__main__":
        return Start(module=name, function=function, path=path) if name and "<" not in function else None
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != "__main__":
        return Start(module=spec.name, path=path)
    return Start(script=os.path.abspath(file)) if file and Path(file).is_file() else None


def absolute_path() -> tuple[str, ...]:
    """`sys.path`, as it reads from another folder."""
    return tuple(map(os.path.abspath, sys.path))


def hydra_arguments(scratch: Path) -> list[str]:
    """Arguments with which a Hydra command takes the configuration that lies in a folder."""
    return [f"--config-path={scratch}", f"--config-name={CONFIG_NAME}"]
