"""Processes that start within milliseconds: scripts as Python would run them, and the ranks of a gloo group.

They are forked from a server that has imported torch and Lightning once a session and has done nothing else, so that
each is as good as new and leaves nothing behind.
"""

import atexit
import multiprocessing
import os
import pickle
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

ROOT = Path(__file__).parents[1]
PATIENCE = 600
"""Seconds; what hangs longer is ended."""
IMPORTED = (
    "hypothesis",
    "matplotlib.backends.backend_agg",
    "nc_callbacks.experiments.data",
    "nc_callbacks.report",
    "nc_callbacks.runs.job",
    "pytest",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torchvision",
)


def python(*command: Any, folder: Path = ROOT, environment: Mapping[str, str] = os.environ) -> Any:
    """What `python SCRIPT …` or `python -m MODULE …` prints in a folder, and its exit code."""
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as scratch:
        process = _start(_run_script, scratch, words, str(folder), dict(environment))
        try:
            process.join(PATIENCE)
            if process.exitcode is None:
                pytest.fail(f"{' '.join(words)} hangs")
        finally:
            _end(process)
        printed, told = (Path(scratch, name).read_text(encoding="utf-8") for name in ("out", "err"))
    return subprocess.CompletedProcess(words, process.exitcode, printed, told)


def on_ranks(function: Callable[..., Any], processes: int, *arguments: Any, as_torchrun: bool = True) -> list[Any]:
    """What a function returns on each rank. Where it fails on one, the others are ended.

    Args:
        function: Of a module, by its name there.
        processes: How many.
        *arguments: To be pickled.
        as_torchrun: With torchrun's variables, so that trainers take the group.
    """
    started, open_ends, results = [], {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for rank in range(processes):
                receiver, sender = multiprocessing.get_context("forkserver").Pipe(duplex=False)
                given = (sender, function, rank, processes, scratch, as_torchrun, arguments)
                started.append(_start(_run_rank, *given))
                sender.close()
                open_ends[receiver] = rank
            while open_ends:
                ready = wait(list(open_ends), timeout=PATIENCE)
                if not ready:
                    pytest.fail(f"{function.__name__} hangs on ranks {sorted(open_ends.values())} of {processes}")
                for receiver in ready:
                    rank = open_ends.pop(receiver)
                    results[rank] = _received(receiver, f"{function.__name__} on rank {rank}")
            for process in started:
                process.join(PATIENCE)
        finally:
            for process in started:
                _end(process)
    return [results[rank] for rank in range(processes)]


def _start(target: Callable[..., None], *arguments: Any) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def _end(process: Any) -> None:
    process.kill()
    process.join()


def _received(receiver: Connection, what: str) -> Any:
    try:
        result, trace = pickle.loads(receiver.recv_bytes())
    except EOFError:
        pytest.fail(f"{what} ended without an exception")
    if trace:
        pytest.fail(f"{what}:\n{trace}")
    return result


def _redirect(scratch: str, *names: str) -> None:
    """Write what is printed, also by what is not Python, to files: of standard output, and of errors."""
    for number, name in zip((1, 2), names, strict=True):
        descriptor = os.open(Path(scratch, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))


def _run_script(scratch: str, words: list[str], folder: str, environment: dict[str, str]) -> None:
    _redirect(scratch, "out", "err")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        if words[0] == "-m":
            sys.path[0], sys.argv = folder, words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0], sys.argv = os.path.dirname(words[0]), words
            runpy.run_path(words[0], run_name="__main__")
    finally:
        # A process of `multiprocessing` leaves them out.
        atexit._run_exitfuncs()


def _run_rank(
    sender: Connection,
    function: Callable[..., Any],
    rank: int,
    processes: int,
    scratch: str,
    as_torchrun: bool,
    arguments: tuple[Any, ...],
) -> None:
    _redirect(scratch, f"{rank}.txt", f"{rank}.txt")
    if as_torchrun:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests"}
    result, trace = None, ""
    try:
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
        trace = f"{Path(scratch, f'{rank}.txt').read_text(encoding='utf-8')}\n{traceback.format_exc()}"
    sender.send_bytes(pickle.dumps((result, trace)))
    if not trace:
        dist.destroy_process_group()
