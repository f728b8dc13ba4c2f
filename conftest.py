"""What the examples in docstrings take for granted."""

from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _names_in_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch
