"""The value that each subject's key is to give: found by going down towards what is to be said."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from workbench.errors import EditError
from workbench.hooks import Site, edited
from workbench.models.score import device_of, next_logits
from workbench.unlearn.editing import Contexts, ends
from workbench.unlearn.training import Told

Aim = Literal["entropy", "neutral"]
"""What is to be answered. Entropy: any candidate of the relation, all alike. Neutral: one of them.

The neutral answer is the relation's first candidate, or its second where the first is the truth: a
word that fits and that any tokenizer which knows the relation can say, picked without data. A word
that is no candidate would leave the truth the likeliest of the candidates.
"""


@dataclass(frozen=True)
class Values:
    """How the values are found.

    On the bundled world MEMIT forgot more at a like cost with the neutral answer than with entropy,
    in one comparison of one seed; fine-tuning of the matrix (`ft_m`) did better with entropy.

    Attributes:
        aim: what is to be answered, see `Aim`.
        steps: of Adam.
        asked: prompts of each subject in a step.
        lr: step as a share of the largest allowed change of a value.
        clamp: largest change of a value, in norms of the residual stream it is added to.
        essence: weight of how the next token moves, in what is kept of the subject.
        decay: weight of the squared change, as a share of the largest allowed one.
        prefixes: contexts of each fact that have a neutral sentence before the prompt.
    """

    aim: Aim = "neutral"
    steps: int = 20
    asked: int = 2
    lr: float = 0.3
    clamp: float = 6.0
    essence: float = 1.0
    decay: float = 0.1
    prefixes: int = 1


@dataclass(frozen=True)
class Shift:
    """Adds a vector of its own to one token of each row."""

    site: Site
    at: Int[Tensor, " n"]
    by: Float[Tensor, "n d_model"]

    def __call__(self, resid: Float[Tensor, "n pos d_model"]) -> Float[Tensor, "n pos d_model"]:
        there = functional.one_hot(self.at, resid.shape[1]).to(resid.dtype)
        return resid + there[..., None] * self.by[:, None].to(resid.dtype)


def found_changes(
    model: Any,
    contexts: Contexts,
    essence: Contexts,
    site: Site,
    given: Values,
    radius: Float[Tensor, " n"],
    seed: int,
) -> Float[Tensor, "n d_model"]:
    """What is to be added to the stream at each subject's last token, so that the aim is said.

    All subjects are gone down at once, each by its own vector; the vectors do not touch each other.

    Args:
        model: one whose weights require no gradients.
        site: where the vector is added.
        radius: largest length of each subject's vector.

    Source: Meng et al. 2022, arXiv 2202.05262, eq. 4. Differs: one vector for all facts of a
    subject; steps and decay are measured by the largest length, so that they fit any model; the
    decay is of squared length over squared length, not of length over squared length; what is kept
    of the subject is asked in its other facts, not in "(subject) is a"; there is no early end.
    """
    rng = random.Random(f"{seed}, values")
    unit = torch.zeros(len(radius), model.cfg.d_model, device=radius.device, requires_grad=True)
    scale = (radius.float() / unit.shape[1] ** 0.5)[:, None]
    optimizer = torch.optim.Adam([unit], lr=given.lr)
    groups = _by_subject(contexts)
    for _ in tqdm(range(given.steps), desc="find values", unit="step", leave=False):
        chosen = [i for g in groups for i in rng.sample(g, min(given.asked, len(g)))]
        unit.grad = given.decay * 2 * unit.detach() / unit.shape[1]
        share = _shares(contexts, chosen, unit.device)
        for batch in contexts.alike(chosen):
            rows, number = _of(contexts, batch, unit.device)
            with edited(model, [Shift(site, ends(rows, unit.device), (unit * scale)[number])]):
                nats = aim_nats(model, rows, given.aim, rng)
            (share[number] * nats).sum().backward()
        if given.essence:
            _keep(model, essence, site, unit, scale, given.essence, rng)
        optimizer.step()
        with torch.no_grad():
            length = unit.norm(dim=-1, keepdim=True) / unit.shape[1] ** 0.5
            unit.div_(length.clamp_min(1.0))
    return (unit * scale).detach().double()


def _keep(
    model: Any,
    essence: Contexts,
    site: Site,
    unit: Float[Tensor, "n d_model"],
    scale: Float[Tensor, "n 1"],
    weight: float,
    rng: random.Random,
) -> None:
    """Adds to the gradient of `unit` that of how the next token moves where it is to stay."""
    chosen = [rng.choice(group) for group in _by_subject(essence)]
    for batch in essence.alike(chosen):
        rows, number = _of(essence, batch, unit.device)
        tokens = torch.tensor([r.ids for r in rows], device=unit.device)
        with torch.no_grad():
            before = next_logits(model, tokens)[:, -1].float().log_softmax(-1)
        with edited(model, [Shift(site, ends(rows, unit.device), (unit * scale)[number])]):
            now = next_logits(model, tokens)[:, -1].float().log_softmax(-1)
        moved = functional.kl_div(now, before, log_target=True, reduction="sum")
        (weight * moved).backward()


def _by_subject(contexts: Contexts) -> list[list[int]]:
    """Indices of each subject's prompts."""
    groups: dict[int, list[int]] = {}
    for i, subject in enumerate(contexts.subjects):
        groups.setdefault(subject, []).append(i)
    return list(groups.values())


def _shares(contexts: Contexts, chosen: Sequence[int], device: Any) -> Float[Tensor, " n"]:
    """One over how often each subject is asked."""
    asked = torch.tensor([contexts.subjects[i] for i in chosen], device=device)
    return 1 / torch.bincount(asked).clamp_min(1).float()


def _of(
    contexts: Contexts, batch: Sequence[int], device: Any
) -> tuple[list[Told], Int[Tensor, " n"]]:
    number = torch.tensor([contexts.subjects[i] for i in batch], device=device)
    return [contexts.rows[i] for i in batch], number


def aims_of(row: Told, aim: Aim) -> list[list[int]]:
    """Tokens of the answers that are aimed at, all alike."""
    if aim not in get_args(Aim):
        raise EditError(f"aim={aim!r}: wanted 'entropy' or 'neutral'")
    return row.answers if aim == "entropy" else [row.answers[int(row.right == 0)]]


def aim_nats(model: Any, rows: Sequence[Told], aim: Aim, rng: random.Random) -> Float[Tensor, " n"]:
    """Cross-entropy of each prompt's answers from those aimed at, prompts of one length.

    The first token is weighed over all answers; those that follow, where answers are of several
    tokens, over one that is drawn.
    """
    device, length = device_of(model), len(rows[0].ids)
    aims = [aims_of(row, aim) for row in rows]
    drawn = [rng.choice(options) for options in aims]
    # What comes after a row's own end is not read by any token before it.
    most = max(map(len, drawn))
    fed = [r.ids + d[:-1] + d[-1:] * (most - len(d)) for r, d in zip(rows, drawn, strict=True)]
    logits = next_logits(model, torch.tensor(fed, device=device))[:, length - 1 :]
    logp = logits.float().log_softmax(-1)
    nats = -_mean_over(logp[:, 0], [[a[0] for a in options] for options in aims])
    for t in range(1, most):
        here = torch.tensor([len(d) > t for d in drawn], device=device)
        token = torch.tensor([d[min(t, len(d) - 1)] for d in drawn], device=device)
        nats = nats - logp[:, t].gather(-1, token[:, None])[:, 0] * here
    return nats


def _mean_over(
    logp: Float[Tensor, "n vocab"], tokens: Sequence[Sequence[int]]
) -> Float[Tensor, " n"]:
    """Mean log-probability over a list of tokens of each row's own."""
    listed = [torch.tensor(t, device=logp.device) for t in tokens]
    index = pad_sequence(listed, batch_first=True)
    count = torch.tensor([len(t) for t in tokens], device=logp.device)
    inside = torch.arange(index.shape[1], device=logp.device) < count[:, None]
    return (logp.gather(-1, index) * inside).sum(-1) / count
