"""What keeps a distilled student from the data: the same student, started from noise of four kinds.

The student is led from the teacher's codes to images, and sampled from N(0, I). If codes were N(0, I), given their
class where models have one, all starts would do equally well.

python benchmarks/codes.py runs/digits_long/nf-gaussian runs/digits_long/fm-distilled
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from _timing import publish
from torch import Tensor

import genkit
from genkit.metrics import METRICS
from genkit.randomness import keyed_generator
from genkit.solvers import SOLVERS

STEPS = (1, 2, 4, 32)
DRAWS = 8  # noisings of the training images on which the codes' covariance is measured


@torch.no_grad()
def main(teacher_folder: str, student_folder: str) -> None:
    teacher, student = genkit.load(teacher_folder), genkit.load(student_folder)
    generator = keyed_generator(0, "codes")
    test, y_test = student.dataset.split("test").take(torch.arange(len(student.dataset.split("test"))))
    train, y_train = student.dataset.split("train").take(torch.arange(len(student.dataset.split("train"))))
    shuffled = torch.randperm(len(train), generator=generator)[: len(test)]
    conditional = student.objective.classes is not None

    def codes(images: Tensor, y: Tensor) -> Tensor:
        encoded = teacher.objective.view.encode(images, generator=generator)
        return teacher.objective.encode(encoded, None if teacher.objective.classes is None else y)

    many = torch.cat([codes(train, y_train) for _ in range(DRAWS)]).flatten(1)
    scale = many.square().mean().sqrt()
    of_class = y_train.repeat(DRAWS)
    normal = torch.randn(len(test), many[0].numel(), generator=generator)
    gaussian = normal.clone()
    for k in y_test.unique() if conditional else (None,):
        own, mine = (many[of_class == k], y_test == k) if conditional else (many, slice(None))
        factor = torch.linalg.cholesky(torch.cov(own.T))
        gaussian[mine] = (own.mean(0) + normal[mine] @ factor.T) / scale
    starts = {
        "N(0, I)": (normal, y_test),
        "N(mean, covariance) of the codes": (gaussian, y_test),
        "codes of training images": (codes(train[shuffled], y_train[shuffled]) / scale, y_train[shuffled]),
        "codes of held-out images": (codes(test, y_test) / scale, y_test),
    }
    of_held_out = (starts["codes of held-out images"][0] * scale).square().mean().sqrt()
    rows = []
    for name, (start, y) in starts.items():
        row: dict[str, str | float] = {"start": name}
        for steps in STEPS:
            metric = METRICS.build("frechet", student.spec)
            metric.update(test, real=True)
            made = student.objective.sample(
                len(start),
                y if conditional else None,
                sampler=SOLVERS.build("euler", steps=steps),
                start=start.reshape(test.shape),
            )
            metric.update(made.x, real=False)
            row[f"{steps} steps"] = float(metric.compute())
        rows.append(row)
    title = "Fréchet distance by where a distilled student starts"
    publish("codes", f"{title}; scale of codes {scale:.2f}, held-out {of_held_out:.2f}", rows, None)


if __name__ == "__main__":
    if len(sys.argv) != 3 or not all(Path(folder).is_dir() for folder in sys.argv[1:]):
        sys.exit(__doc__)
    main(*sys.argv[1:])
