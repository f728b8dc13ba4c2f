"""One process of a job, as torchrun starts it: ``worker.py FOLDER``, with what to run in the folder's start.json."""

import importlib
import json
import operator
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(scratch: Path) -> None:
    """Run the job's main function on the configuration in the folder."""
    start = json.loads(Path(scratch, "start.json").read_text())
    # Before any import that is not Python's own: the modules are those of the process that started this one.
    sys.path[:] = start["path"]

    import hydra
    from torch.distributed.elastic.multiprocessing.errors import record

    from nc_callbacks.runs.start import hydra_arguments

    sys.argv[1:] = hydra_arguments(scratch)
    if not start["function"]:
        runpy.run_module(start["module"], run_name="__main__", alter_sys=True)
        return
    task = record(_found)(start["module"], start["function"])
    assert task is not None
    hydra.main(version_base="1.3", config_path=None)(record(task))()


def _found(module: str, function: str) -> Callable[..., Any]:
    return operator.attrgetter(function)(importlib.import_module(module))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
