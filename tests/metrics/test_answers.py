"""Answers: right ones count, of the task alone, and the classifiers see what real rows are."""

import pytest
import torch

from genkit.data import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import METRICS, Judge
from genkit.metrics.answers import Answers
from genkit.metrics.extractor import load_extractor

DATA = DATASETS.build("trimodal")


def rows(task, n=60):
    x = DATA.test.take(torch.arange(len(DATA.test)))[0]
    return x[x[:, 0] == DATA.symbol(task)][:n]


def test_which_data_have_answers():
    names = {name for name in METRICS.names() if issubclass(METRICS.get(name), Answers)}
    assert names == {"image_to_text", "text_to_image", "sound_to_text", "text_to_sound"}
    assert {name for name in names if METRICS.get(name).applies(DATA.spec)} == {
        "image_to_text",
        "text_to_image",
    }
    digits = DATASETS.build("digits").spec
    for name in names:
        assert not METRICS.get(name).applies(digits)
        with pytest.raises(GenkitError, match="needs such prompts and answers, which 'digits' has not"):
            METRICS.build(name, digits)


def test_a_name_is_right_letter_by_letter():
    right = rows("image-to-text")
    wrong = right.clone()
    wrong[:15, -5] = 0  # the first letter
    metric = METRICS.build("image_to_text", DATA.spec)
    metric.update(torch.cat((wrong, rows("text"))), torch.cat((right, rows("text"))), DATA)
    assert metric.compute() == 0.75
    metric.update(right, right, DATA)
    assert metric.compute() == 0.875


def test_an_image_is_right_as_the_classifier_sees_it():
    x = rows("text-to-image", 360)
    metric = METRICS.build("text_to_image", DATA.spec)
    metric.update(x, x, DATA)
    assert metric.compute() == pytest.approx(load_extractor("digits").accuracy, abs=1e-4)
    metric.reset()
    blank = torch.zeros(360, 64, dtype=torch.int64)
    empty = torch.cat((x[:, :9], blank + DATA.modalities["image"].first), dim=1)
    metric.update(empty, x, DATA)
    assert metric.compute() < 0.2


def test_nothing_to_judge_is_an_error():
    metric = METRICS.build("image_to_text", DATA.spec)
    metric.update(rows("text"), rows("text"), DATA)
    with pytest.raises(GenkitError, match="no rows of the task 'image-to-text': more samples are needed"):
        metric.compute()


def test_the_judge_asks_and_marks():
    judge = Judge(DATA, 200)
    prompts = judge.prompts
    real, _ = judge._rows("test", 200)
    free = prompts < 0
    assert torch.equal(real[~free], prompts[~free])
    assert not torch.isin(real[free], torch.tensor(DATA.spec.fixed)).any()
    assert set(free.sum(1).tolist()) == {5, 64, 70}
    found = judge.samples(real)
    assert found["image_to_text"] == 1
    assert found == judge.floors()
    assert {entry["name"] for entry in judge.about()} >= {"image_to_text", "text_to_image"}
    assert Judge(DATASETS.build("digits"), 20).prompts is None
