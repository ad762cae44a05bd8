"""What all tests share: no network, no window, no randomness left over, quick tests first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

# Before anything imports the libraries that read these.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Small tensors gain nothing from threads, and threads that wait for each other on a busy machine lose much.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

# Same examples in every run; no time limits, for machines differ.
hypothesis.settings.register_profile(
    "genkit", derandomize=True, deadline=None, database=None, max_examples=25
)
hypothesis.settings.load_profile("genkit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests last, else in order: a broken law shows before a training run starts."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def clean_torch() -> Iterator[None]:
    """Each test starts from the same global seed and leaves the default dtype as it was."""
    torch = sys.modules.get("torch")
    if torch is None:  # nothing to clean, and no reason to import it
        yield
        return
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
