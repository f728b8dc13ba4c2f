"""Scripts as Python would run them, and the ranks of a gloo group, in processes that start within milliseconds."""

import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.forked_python import executable

ROOT = Path(__file__).parents[1]
PATIENCE = 600
"""Seconds; what hangs longer is ended."""


def python(*command: Any, folder: Path = ROOT, environment: Mapping[str, str] = os.environ) -> Any:
    """What `python SCRIPT …` or `python -m MODULE …` prints in a folder, and its exit code."""
    words = [executable(), *(str(word) for word in command)]
    try:
        return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{' '.join(words[1:])} hangs")


def on_ranks(function: Callable[..., Any], processes: int, *arguments: Any, as_torchrun: bool = True) -> list[Any]:
    """What a function returns on each rank. Where it fails on one, the others are ended.

    Args:
        function: Of a module, by its name there.
        processes: How many.
        *arguments: To be pickled.
        as_torchrun: With torchrun's variables, so that trainers take the group.
    """
    started, open_ends, results = [], {}, {}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory() as scratch:
        given = pickle.dumps((function, processes, as_torchrun, arguments))
        Path(scratch, "given").write_bytes(given)
        try:
            for rank in range(processes):
                receiver, sender = Pipe(duplex=False)
                command = [executable(), "-m", __name__, scratch, str(rank), str(sender.fileno())]
                with open(Path(scratch, f"{rank}.txt"), "w") as printed, sender:
                    output = {"stdout": printed, "stderr": printed, "pass_fds": [sender.fileno()]}
                    started.append(subprocess.Popen(command, cwd=ROOT, env=environment, **output))
                open_ends[receiver] = rank
            while open_ends:
                ready = wait(list(open_ends), timeout=PATIENCE)
                if not ready:
                    pytest.fail(f"{function.__name__} hangs on ranks {sorted(open_ends.values())} of {processes}")
                for receiver in ready:
                    rank = open_ends.pop(receiver)
                    results[rank] = _received(receiver, f"{function.__name__} on rank {rank}")
            for process in started:
                process.wait(PATIENCE)
        finally:
            for process in started:
                process.kill()
                process.wait()
    return [results[rank] for rank in range(processes)]


def _received(receiver: Connection, what: str) -> Any:
    try:
        result, trace = pickle.loads(receiver.recv_bytes())
    except EOFError:
        pytest.fail(f"{what} ended without an exception")
    if trace:
        pytest.fail(f"{what}:\n{trace}")
    return result


def _run_rank(scratch: str, rank: int, sender: Connection) -> None:
    result, trace = None, ""
    try:
        function, processes, as_torchrun, arguments = pickle.loads(Path(scratch, "given").read_bytes())
        if as_torchrun:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ |= {name: str(value) for name, value in names.items()}
            os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests"}
        # Collectives that do not match fail rather than wait.
        dist.init_process_group(
            "gloo",
            init_method=f"file://{scratch}/store",
            rank=rank,
            world_size=processes,
            timeout=timedelta(minutes=2),
        )
        result = function(*arguments)
    except BaseException:
        sys.stdout.flush()
        trace = f"{Path(scratch, f'{rank}.txt').read_text(encoding='utf-8')}\n{traceback.format_exc()}"
    sender.send_bytes(pickle.dumps((result, trace)))
    if not trace:
        dist.destroy_process_group()


if __name__ == "__main__":
    _run_rank(sys.argv[1], int(sys.argv[2]), Connection(int(sys.argv[3]), readable=False))
