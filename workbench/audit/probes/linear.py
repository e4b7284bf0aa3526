"""Linear readers, one per place: how they are fitted and how their penalty is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.audit.probes.labels import Grid, Labels
from workbench.audit.probes.ridge import Weights, fit_ridge
from workbench.facts.schema import Fact

RIDGES = (10.0, 1.0, 0.1)
"""Penalties, from the strongest, whose solution is where the next begins."""

Rows = Float[Tensor, "place fact d_model"]


@dataclass(frozen=True)
class Frame:
    """Standardises rows by what they were fitted on, and turns them to its principal axes.

    The axes leave a ridge regression as it is: they make it faster to solve, and hold no more
    dimensions than there are rows.
    """

    mean: Float[Tensor, "place 1 d_model"]
    std: Float[Tensor, "place 1 d_model"]
    axes: Float[Tensor, "place d_model feature"]

    @classmethod
    def of(cls, standard: Rows, *others: Float[Tensor, "place _other d_model"]) -> "Frame":
        """Learns the frame from rows.

        Args:
            standard: the rows whose mean and standard deviation count, of R_tr.
            others: further rows that will be fitted.
        """
        mean, std = standard.mean(1, keepdim=True), standard.std(1, keepdim=True).clamp_min(1e-6)
        every = (torch.cat([standard, *others], 1) - mean) / std
        return cls(mean, std, torch.linalg.svd(every, full_matrices=False)[2].mT.contiguous())

    def __call__(self, rows: Rows) -> Float[Tensor, "place fact feature"]:
        return torch.bmm((rows - self.mean) / self.std, self.axes)


@dataclass(frozen=True)
class Lesson:
    """Rows in a frame, with the answers to learn or to be asked for."""

    x: Float[Tensor, "place fact feature"]
    answers: Int[Tensor, " fact"]
    grid: Grid

    @classmethod
    def of(
        cls,
        labels: Labels,
        x: Float[Tensor, "place fact feature"],
        facts: Sequence[Fact],
        answers: Int[Tensor, " fact"] | None = None,
    ) -> "Lesson":
        """Lays facts and their answers out.

        Args:
            answers: other ones than the facts' objects.
        """
        return cls(x, labels.objects(facts) if answers is None else answers, labels.grid(facts))


@dataclass(frozen=True)
class Readers:
    """One linear reader per place, with the penalty that each was fitted under."""

    labels: Labels
    weights: Weights
    ridge: Float[Tensor, " place"]

    def logprobs(self, lesson: Lesson) -> Float[Tensor, "place fact k"]:
        """Log-probability of each candidate, -inf where there is none."""
        said = self.weights.logprobs(
            lesson.grid.gathered(lesson.x), _allowed(self.labels, len(lesson.x))
        )
        return lesson.grid.scattered(said, lesson.x.shape[1])

    def hits(self, lesson: Lesson) -> Float[Tensor, "place fact"]:
        """1 where the right answer is the likeliest."""
        return (self.logprobs(lesson).argmax(-1) == lesson.answers).float()


def fitted(
    labels: Labels,
    lesson: Lesson,
    ridge: Float[Tensor, " place"],
    start: Weights | None = None,
) -> Readers:
    """Multinomial ridge regression at each place.

    Each relation's rows compete among its own candidates alone, so each relation has a regression
    of its own, with its own intercepts.

    Args:
        ridge: penalty ridge/2 · ||W||² on the mean loss over a relation's rows.
    """
    grid, n_places = lesson.grid, len(lesson.x)
    answers = torch.where(grid.real, lesson.answers[grid.index], 0)
    weights = fit_ridge(
        grid.gathered(lesson.x),
        answers.repeat(n_places, 1),
        grid.real.repeat(n_places, 1),
        _allowed(labels, n_places),
        ridge.repeat_interleave(len(labels.relations)),
        start,
    )
    return Readers(labels, weights, ridge)


def tuned(labels: Labels, lesson: Lesson, chooser: Lesson) -> Readers:
    """Readers whose penalty, at each place, gives most hits on the choosing facts.

    Ties go to the higher likelihood. Without choosing facts it is the penalty in the middle.
    """
    tries: list[Readers] = []
    for ridge in RIDGES:
        start = tries[-1].weights if tries else None
        tries.append(fitted(labels, lesson, torch.full((len(lesson.x),), ridge), start))
    if not len(chooser.answers):
        return tries[len(tries) // 2]
    best = torch.stack([_merit(readers, chooser) for readers in tries]).argmax(0)
    problem = best.repeat_interleave(len(labels.relations))
    at = torch.arange(len(problem))
    slopes, intercepts = (
        torch.stack(part)[problem, at]
        for part in zip(*(readers.weights for readers in tries), strict=True)
    )
    return Readers(labels, Weights(slopes, intercepts), torch.tensor(RIDGES)[best])


def _merit(readers: Readers, lesson: Lesson) -> Float[Tensor, " place"]:
    logprobs = readers.logprobs(lesson)
    right = logprobs.gather(-1, lesson.answers.expand(len(logprobs), -1)[..., None])[..., 0]
    hits = (logprobs.argmax(-1) == lesson.answers).float()
    return hits.sum(1) + right.mean(1).exp() / 2


def _allowed(labels: Labels, n_places: int) -> Tensor:
    return labels.allowed.repeat(n_places, 1)
