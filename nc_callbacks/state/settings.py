"""Settings of torch and of the process that code may change while it runs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch


def _settings() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """What reads and what sets each, by name."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def of(place: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
        return lambda: getattr(place, name), lambda value: setattr(place, name, value)

    def deterministic(value: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(value[0], warn_only=value[1])

    return {
        "torch.get_default_dtype()": (torch.get_default_dtype, torch.set_default_dtype),
        "torch.get_float32_matmul_precision()": (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        "torch.get_num_threads()": (torch.get_num_threads, torch.set_num_threads),
        "torch.are_deterministic_algorithms_enabled()": (
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            deterministic,
        ),
        "torch.is_anomaly_enabled()": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        **{f"torch.backends.cudnn.{n}": of(cudnn, n) for n in ("enabled", "benchmark", "deterministic", "allow_tf32")},
        "torch.backends.cuda.matmul.allow_tf32": of(matmul, "allow_tf32"),
        **{
            f"torch.is_autocast_enabled({kind!r})": (
                functools.partial(torch.is_autocast_enabled, kind),
                functools.partial(torch.set_autocast_enabled, kind),
            )
            for kind in ("cpu", "cuda")
        },
        "os.environ": (lambda: dict(os.environ), _set_environment),
        "numpy.geterr()": (np.geterr, lambda value: np.seterr(**value)),
        "os.getcwd()": (os.getcwd, os.chdir),
    }


def _set_environment(held: dict[str, str]) -> None:
    for name in set(os.environ) - set(held):
        del os.environ[name]
    os.environ.update({name: value for name, value in held.items() if os.environ.get(name) != value})


def _read(get: Callable[[], Any]) -> Any:
    # Which of two ways of setting the same thing may be read depends on which was used.
    with suppress(Exception):
        return get()
    return None


def global_settings() -> dict[str, Any]:
    """The settings by name."""
    return {name: _read(get) for name, (get, _) in _settings().items()}


def put_back_settings(held: dict[str, Any]) -> None:
    """Set what is no longer as held."""
    for name, (get, put) in _settings().items():
        if _read(get) != held[name]:
            with suppress(Exception):
                put(held[name])
