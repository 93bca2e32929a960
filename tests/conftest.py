"""For all tests: one thread, and no network. Set before torch or huggingface_hub is imported."""

from __future__ import annotations

import os

import pytest

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

FIRST = ("test_job.py", "test_job_kinds.py", "test_promotion_cli.py")
"""Files whose tests take longest: begun last, one of two processes would wait for the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put them first; the order is otherwise kept."""
    items.sort(key=lambda item: item.path.name not in FIRST)
