"""Reading in a forked process, whose memory is a copy: whatever reading changes there, training does not see."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import pickle
import random
import signal
import stat
import struct
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nc_callbacks.data.handles import can_be_forked

_PATIENCE = 600
"""Seconds to wait for a batch."""

_END, _BATCH, _ERROR = range(3)


class Isolated:
    """An iterable that is gone through in a forked process, and in this one where that cannot be.

    It cannot where the platform does not fork, where the data holds threads, locks, sockets, tensors on a GPU or
    handles of libraries that are not known to bear it, and where reading the first batch fails there. What is read then
    is for `nc_callbacks.data.preserve.preserved` to put back.

    Args:
        iterable: What is gone through.
    """

    def __init__(self, iterable: Any) -> None:
        self.iterable = iterable

    def __len__(self) -> int:
        return len(self.iterable)

    @property
    def dataset(self) -> Any:
        """The data that a loader reads."""
        return self.iterable.dataset

    def __iter__(self) -> Iterator[Any]:
        reader = _Reader.of(self.iterable)
        if reader is not None:
            try:
                kind, batch = reader.receive()
                while kind == _BATCH:
                    yield batch
                    kind, batch = reader.receive()
                if kind == _END:
                    return
                if reader.received > 1:
                    raise batch
            finally:
                # The traceback of an error would keep the error, and so itself.
                batch = None
                reader.close()
        # What cannot be read elsewhere, or cannot be read at all and says so itself.
        yield from self.iterable


class _Reader:
    """A forked process that sends what an iterable gives.

    Args:
        pid: The process.
        connection: Where it sends.
    """

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid, self.connection, self.received = pid, connection, 0

    @classmethod
    def of(cls, iterable: Any) -> _Reader | None:
        """A new process; None where there can be none."""
        if sys.platform != "linux" or not can_be_forked(iterable):
            return None
        ours, theirs = multiprocessing.Pipe(duplex=False)
        try:
            with warnings.catch_warnings():
                # Of threads in this process, which the other one has no use for.
                warnings.simplefilter("ignore")
                pid = os.fork()
        except OSError:
            return None
        if pid == 0:
            try:
                ours.close()
                _read(iterable, theirs)
            finally:
                os._exit(0)
        theirs.close()
        return cls(pid, ours)

    def receive(self) -> tuple[int, Any]:
        """What came, and of what kind."""
        self.received += 1
        try:
            if not self.connection.poll(_PATIENCE):
                return _ERROR, TimeoutError(f"The process that reads the data gave nothing for {_PATIENCE} seconds.")
            header = self.connection.recv_bytes()
            kind, *sizes = struct.unpack(f"<{len(header) // 8}Q", header)
            message = self.connection.recv_bytes()
            buffers = [bytearray(size) for size in sizes]
            for buffer in buffers:
                self.connection.recv_bytes_into(buffer)
            return kind, pickle.loads(message, buffers=buffers)
        except EOFError:
            return _ERROR, RuntimeError("The process that reads the data was ended, perhaps for want of memory.")
        except Exception as error:
            return _ERROR, error

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _read(iterable: Any, connection: Connection) -> None:
    """Go through the iterable in a process of its own."""
    # Handlers of the trainer would act as if they were in its process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    # Threads of pools are not here; a device that is in use there cannot be used here.
    torch.set_num_threads(1)
    torch.cuda.is_available = torch.accelerator.is_available = lambda: False
    # A loader in it may have workers.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    warnings.simplefilter("ignore")
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is meant
    torch.default_generator.manual_seed(0)
    _reopen_files()
    try:
        for batch in iterable:
            _send(connection, _BATCH, batch)
        _send(connection, _END, None)
    except BaseException as error:
        _send(connection, _ERROR, _sendable(error))


def _reopen_files() -> None:
    """Make places in files that are read those of this process alone."""
    # Not there on every platform.
    import fcntl

    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            number = int(name)
            reads = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            if reads and stat.S_ISREG(os.fstat(number).st_mode):
                own = os.open(f"/proc/self/fd/{number}", os.O_RDONLY)
                os.lseek(own, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
                os.dup2(own, number, inheritable=False)
                os.close(own)


def _sendable(error: BaseException) -> Exception:
    text = "".join(traceback.format_exception(error))
    try:
        found = pickle.loads(pickle.dumps(error))
        assert isinstance(found, Exception)
    except BaseException:
        found = RuntimeError(f"{type(error).__name__}: {error}")
    found.__cause__ = RuntimeError(f"in the process that reads the data:\n{text}")
    return found


class _Pickler(pickle.Pickler):
    """Sends whole tensors as they lie in memory."""

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is not Tensor or thing.device.type != "cpu" or thing.layout is not torch.strided:
            return NotImplemented
        if thing.requires_grad or not thing.is_contiguous() or thing.is_conj() or thing.is_neg() or not thing.numel():
            return NotImplemented
        flat: Any = thing.reshape(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(flat), thing.dtype, tuple(thing.shape))


def _tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).reshape(shape)


def _send(connection: Connection, kind: int, thing: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(thing)
    parts = [buffer.raw() for buffer in buffers]
    connection.send_bytes(struct.pack(f"<{1 + len(parts)}Q", kind, *(part.nbytes for part in parts)))
    connection.send_bytes(stream.getbuffer())
    for part in parts:
        connection.send_bytes(part)
