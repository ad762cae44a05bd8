"""Keyed generators: a function of the key alone."""

import subprocess
import sys

import pytest
import torch

from genkit.randomness import RankGenerator, keyed_generator, sample_like, streams


def test_equal_keys_give_equal_streams() -> None:
    first, again = keyed_generator(3, "data", 7), keyed_generator(3, "data", 7)
    torch.rand(5, generator=first)
    again_draws = torch.rand(10, generator=again)
    assert torch.equal(torch.rand(5, generator=first), again_draws[5:])


def test_every_part_of_the_key_matters() -> None:
    keys = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a1"), (0, "a", "1"), (0, 1, "a"), (0, "a", 11)]
    seeds = {keyed_generator(*key).initial_seed() for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_stream_is_the_same_in_another_process() -> None:
    code = "from genkit.randomness import keyed_generator; print(keyed_generator(5, 'x', 2).initial_seed())"
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(there) == keyed_generator(5, "x", 2).initial_seed()


def test_a_key_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError):
        keyed_generator(0, torch.tensor(1))  # type: ignore[arg-type]


def test_streams_are_those_of_all_processes_and_do_not_move_each_other() -> None:
    whole = [sample_like(torch.rand, torch.zeros(6), one) for one in streams(keyed_generator(0), 3)]
    assert len({float(part[0]) for part in whole}) == 3
    for first, count in ((0, 2), (2, 4)):
        rank = RankGenerator.of(keyed_generator(0), keyed_generator(0, first), first, count, 6)
        parts = streams(rank, 3)
        torch.rand(5, generator=parts[0])  # of its own
        for part, expected in zip(parts[1:], whole[1:], strict=True):
            assert torch.equal(
                sample_like(torch.rand, torch.zeros(count), part), expected[first : first + count]
            )
