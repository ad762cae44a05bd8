"""What keeps a distilled student from the data: the same student, started from noise of four kinds.

The student is led from the teacher's codes to images, and sampled from N(0, I). If codes were N(0, I), all starts
would do equally well.

python benchmarks/codes.py runs/digits_long/nf-gaussian runs/digits_long/fm-distilled
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from _timing import publish

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
    test, _ = student.dataset.split("test").take(torch.arange(len(student.dataset.split("test"))))
    train, _ = student.dataset.split("train").take(torch.arange(len(student.dataset.split("train"))))
    shuffled = torch.randperm(len(train), generator=generator)[: len(test)]

    def codes(images):
        return teacher.objective.encode(teacher.objective.view.encode(images, generator=generator))

    many = torch.cat([codes(train) for _ in range(DRAWS)])
    scale = many.square().mean().sqrt()
    factor = torch.linalg.cholesky(torch.cov(many.flatten(1).T))
    normal = torch.randn(len(test), many[0].numel(), generator=generator)
    starts = {
        "N(0, I)": normal.reshape(test.shape),
        "N(mean, covariance) of the codes": (many.flatten(1).mean(0) + normal @ factor.T).reshape(test.shape)
        / scale,
        "codes of training images": codes(train[shuffled]) / scale,
        "codes of held-out images": codes(test) / scale,
    }
    rows = []
    for name, start in starts.items():
        row = {"start": name}
        for steps in STEPS:
            solver = SOLVERS.build("euler", steps=steps)
            metric = METRICS.build("frechet", student.spec)
            metric.update(test, real=True)
            metric.update(student.objective.sample(len(start), sampler=solver, start=start).x, real=False)
            row[f"{steps} steps"] = float(metric.compute())
        rows.append(row)
    publish("codes", "Fréchet distance of a distilled student by where it starts", rows, None)


if __name__ == "__main__":
    if len(sys.argv) != 3 or not all(Path(folder).is_dir() for folder in sys.argv[1:]):
        sys.exit(__doc__)
    main(*sys.argv[1:])
