"""Settings of hypothesis: the same few examples every time, or many new ones with --hypothesis-profile=thorough.

And the order of the files, by how long they take.
"""

import pytest
from hypothesis import settings

settings.register_profile("quick", max_examples=20, derandomize=True, deadline=None, database=None)
settings.register_profile("thorough", max_examples=100, deadline=None, database=None, print_blob=True)
settings.load_profile("quick")

LONG = [
    *("test_train.py", "test_sweep_command.py", "test_start.py", "test_launchers.py", "test_code_blocks.py"),
    *("test_loggers.py", "test_zoo.py", "test_transfer.py", "test_heads.py", "test_early_stop.py"),
]
"""Files with slow tests of half a minute and more, the longest first."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Long files come first, in whatever order the others are: at the end none keeps one process busy, and one idle."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
