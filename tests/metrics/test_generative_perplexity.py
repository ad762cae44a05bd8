"""Generative perplexity of known likelihoods."""

import math

import pytest
import torch

from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.types import DataSpec, LogProb

SPEC = DataSpec("x", (4,), levels=8, ordered=False, tokenizer="ascii")


def test_a_uniform_scorer_is_as_perplexed_as_there_are_symbols():
    metric = METRICS.build("generative_perplexity", SPEC)
    for n in (3, 5):
        metric.update(LogProb(torch.full((n,), -4 * math.log(8)), "exact"))
    assert metric.compute().item() == pytest.approx(8)


def test_each_symbol_counts_alike():
    """Rows of 3 symbols at 2 bits and of 1 symbol at 6 bits: 3 bits a symbol."""
    metric = METRICS.build("generative_perplexity", SPEC)
    metric.update(LogProb(-math.log(2) * torch.tensor([6.0, 6.0]), "exact", count=torch.tensor([3, 1])))
    assert metric.compute().item() == pytest.approx(8)


@pytest.mark.parametrize("kind", ["bound", "estimate"])
def test_a_bound_is_no_likelihood(kind):
    with pytest.raises(GenkitError, match=f"an exact likelihood, not an? {kind}"):
        METRICS.build("generative_perplexity", SPEC).update(LogProb(torch.zeros(2), kind))
