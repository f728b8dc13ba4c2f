"""A Python that starts within milliseconds, for the tests, for scripts and for whatever they start in turn.

`executable()` is a command that takes what `python` takes: a script, `-m MODULE` or `-c CODE`. It hands its arguments,
environment, folder and open files to a server that has imported torch and Lightning once and has done nothing else, and
that forks a process for them. There `sys.executable` is this command again, so that torchrun's ranks, Lightning's
processes and a launcher's workers start as quickly. Signals are passed on, the exit status is passed back, and neither
of the two outlives the other.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Sequence
from multiprocessing import spawn
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
IMPORTED = (
    "hypothesis.strategies",
    "matplotlib.backends.backend_agg",
    "nc_callbacks.experiments.data",
    "nc_callbacks.report",
    "nc_callbacks.runs.job",
    "pytest",
    "pytorch_lightning",
    "sklearn.datasets",
    "tensorboard.backend.event_processing.event_accumulator",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.launcher.api",
    "torch.distributed.tensor.parallel",
    "torchvision",
)
"""Modules that the server, and whatever it forks, finds imported."""
SHARED = "TESTS_PYTHON"
"""The variable that gives the command to the processes among which the tests are shared out."""
MOST_FILES = 253
"""As many descriptors as one message holds."""
OUT_OF_THE_WAY = 512
"""Descriptors from here on are free, in the command and in the server."""

COMMAND = """#!{python} -IS
import json, os, signal, socket, sys

# One of those listed was that of the listing.
descriptors = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{{name}}")]
asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), descriptors]).encode()
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: server.send(bytes([number])))
socket.send_fds(server, [len(asked).to_bytes(8, "big")], descriptors)
server.sendall(asked)
status = int.from_bytes(server.recv(4, socket.MSG_WAITALL) or b"\\1", "big", signed=True)
if status < 0:
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@functools.cache
def executable() -> str:
    """The command's path, good until this process ends; where there is no Linux, that of Python itself."""
    if sys.platform != "linux":
        return sys.executable
    if SHARED in os.environ:
        return os.environ[SHARED]
    folder = Path(tempfile.mkdtemp(prefix="python"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address, path = str(folder / "server"), folder / "python"
    path.write_text(COMMAND.format(python=sys.executable, address=address))
    path.chmod(0o755)
    # It ends when its standard input is closed: at the latest with this process.
    command = [sys.executable, __file__, address, str(path)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    if not server.stdout.readline():
        raise RuntimeError("the server of forked processes did not start")
    atexit.register(server.communicate)
    return str(path)


def _serve(address: str, path: str) -> None:
    gc.disable()
    for name in IMPORTED:
        # What is not installed is missed where it is used.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # Nothing of it is ever given up.
    gc.freeze()
    gc.enable()
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(64)
    # Nobody waits for what is forked here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(1, b"ready\n")
    while server in select.select([server, 0], [], [])[0]:
        command, _ = server.accept()
        if os.fork() == 0:
            server.close()
            _keep(command, path)
        command.close()


def _keep(command: socket.socket, path: str) -> NoReturn:
    """Fork the process, pass signals on to it and its exit status back, and end it where the command has ended."""
    size, descriptors, _, _ = socket.recv_fds(command, 8, MOST_FILES)
    asked = json.loads(command.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        _become(path, descriptors, *asked)
    # Whoever reads from the other end of a pipe waits until all have closed it.
    os.closerange(0, 3)
    for descriptor in descriptors:
        os.close(descriptor)
    ended = os.pidfd_open(child)
    while ended not in (ready := select.select([command, ended], [], [])[0]):
        number = command.recv(1) if command in ready else b""
        os.kill(child, number[0] if number else signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    command.send(status.to_bytes(4, "big", signed=True), socket.MSG_NOSIGNAL)
    os._exit(0)


def _become(
    path: str,
    descriptors: Sequence[int],
    words: list[str],
    environment: dict[str, str],
    folder: str,
    numbers: Sequence[int],
) -> NoReturn:
    """Be a process that Python has just started."""
    # Given descriptors get the numbers that they have in the command.
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, OUT_OF_THE_WAY) for descriptor in descriptors]
    os.closerange(0, OUT_OF_THE_WAY)
    for number, descriptor in zip(numbers, kept, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0) if 0 in numbers else None
    sys.stdout = os.fdopen(1, "w") if 1 in numbers else None
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace") if 2 in numbers else None
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.executable = path
    # What the server has imported may have one of its own.
    sys.excepthook = sys.__excepthook__
    spawn.set_executable(path)
    try:
        sys.exit(_run(words, folder))
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        status = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    # The same as at the end of Python.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 255)


def _run(words: list[str], folder: str) -> None:
    while words[0].startswith("-") and words[0] not in ("-c", "-m"):
        if words.pop(0) in ("-W", "-X"):
            words.pop(0)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    of_environment = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = [folder, *of_environment, *sys.path]
    if words[0] == "-m":
        sys.argv = ["-m", *words[2:]]
        runpy._run_module_as_main(words[1])
    elif words[0] == "-c":
        sys.path[0], sys.argv = "", ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        main.__file__, sys.argv = os.path.abspath(words[0]), words
        sys.path[0] = os.path.dirname(os.path.realpath(words[0]))
        exec(compile(Path(words[0]).read_bytes(), main.__file__, "exec"), main.__dict__)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    _serve(*sys.argv[1:])
