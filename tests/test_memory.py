"""Memory that is free, and the error of what does not fit in it."""

from __future__ import annotations

import pytest
import torch

from genkit.errors import GenkitError
from genkit.memory import check_memory, free_memory


def test_free_memory_is_known_here() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 0


def test_what_does_not_fit_is_said_with_the_sizes_and_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genkit.memory.free_memory", lambda device: 2**30)
    check_memory("three rows", 2**30, torch.device("cpu"), "take two")
    with pytest.raises(GenkitError, match="three rows take 1.5 GiB, and 1.0 GiB are free on cpu: take two"):
        check_memory("three rows", 1.5 * 2**30, torch.device("cpu"), "take two")
    monkeypatch.setattr("genkit.memory.free_memory", lambda device: None)
    check_memory("three rows", 2.0**90, torch.device("cpu"), "take two")


def test_what_torch_keeps_of_a_gpu_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"mem_get_info": (2, 80), "memory_reserved": 70, "memory_allocated": 10}
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(torch.device("cuda:0")) == 62
