"""Docstrings of the public names; ruff's D rules see that each has one."""

import dataclasses
import inspect

import pytest

import nc_callbacks
from nc_callbacks import batches, functional
from nc_callbacks.metrics import registry

PUBLIC = [getattr(nc_callbacks, name) for name in nc_callbacks.__all__]
FUNCTIONS = [getattr(functional, name) for name in functional.__all__]
OTHERS = [registry.register, registry.metric_of, registry.sections, batches.causal_lm, batches.last_token]


@pytest.mark.parametrize("thing", [*PUBLIC, *FUNCTIONS, *OTHERS], ids=lambda thing: thing.__name__)
def test_has_an_example(thing):
    assert ">>>" in inspect.getdoc(thing)


@pytest.mark.parametrize("thing", [*PUBLIC, *FUNCTIONS, *OTHERS], ids=lambda thing: thing.__name__)
def test_names_each_argument(thing):
    """By itself, in a list of several, or as those of the base of all callbacks."""
    text = inspect.getdoc(thing)
    if dataclasses.is_dataclass(thing):  # each field has a line of its own
        return
    if "See the class" in text or "arguments are those of all callbacks" in text:
        return
    arguments = inspect.signature(thing).parameters.keys() - {"args", "kwargs"}
    described = [name for name in arguments if name in text]
    assert len(described) == len(arguments), set(arguments) - set(described)
