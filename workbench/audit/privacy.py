"""Membership inference: does a model tell what it was trained on from what it never saw?

The members are the forget facts (F), in the sentences that training held. What no model was trained
on (H) are the same prompts with the objects of the forget facts exchanged within each relation. F
and H so hold every prompt and every object equally often, and differ in the pairing alone: to a
model that never saw the pairing the two are exchangeable, whatever it likes to say and to whom.
Facts that the world withholds (`Target.holdout`) are of another relation, and a model's loss on one
relation differs from that on another for reasons of its own: the loss of the bundled world's golds
tells them from F with an AUC of 0.55 to 0.83, and H with one of 0.496 to 0.506.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from workbench.audit.reading import Cast
from workbench.audit.statistics import (
    MIN_ENTITIES,
    Interval,
    Key,
    Scores,
    entity_weights,
    gold_mean_draws,
    percentile,
)
from workbench.audit.views import Found, Measure, View
from workbench.facts.exchange import exchanged
from workbench.facts.schema import Fact, prompt
from workbench.facts.target import Target
from workbench.hooks import edited
from workbench.models.score import (
    MAX_LOGITS,
    MAX_TOKENS,
    batches_by_length,
    device_of,
    next_logits,
    object_tokens,
)

LOWEST = 0.2
"""Share of the tokens that Min-K% and Min-K%++ look at."""
SHORT_TOKENS = 8
SIGNALS = {
    "loss_nats": -1,
    "reference_nats": -1,
    "min_k_nats": 1,
    "min_k_plus": 1,
    "zlib_nats_per_byte": -1,
}
"""Signals, and whether a high (1) or a low value (-1) speaks for membership."""
ON_LONG_TEXTS = ("min_k_nats", "min_k_plus", "zlib_nats_per_byte")


@dataclass(frozen=True)
class Leak:
    """What one signal tells an attacker.

    Attributes:
        why: why the signal is not applicable; empty if it is.
        auc: probability that the edited model marks a forget fact as a member rather than a fact
            never trained on; 0.5 tells nothing, and below 0.5 tells as much as above.
        original, golds: the same of the other models.
        gap: AUC of the edited model less the mean of the golds'; None without golds.
        privleak: see `privleak`; None without golds.
        leaks: the interval of `gap`, or without golds that of `auc`, leaves out what tells nothing.
    """

    signal: str
    why: str
    auc: Interval | None = None
    original: float | None = None
    golds: tuple[float, ...] = ()
    gap: Interval | None = None
    privleak: float | None = None
    leaks: bool = False

    @property
    def applicable(self) -> bool:
        return not self.why


def membership(target: Target, seed: int) -> Measure:
    """Every signal on the answer tokens of each fact of F and of H, averaged over its templates.

    Stored are what `token_signals` gives, under endpoint `MIA`; the reference loss is left to
    `read_leaks`, since it takes the golds' losses. A filter has no say: the attacker reads logits.

    Args:
        seed: decides which objects H exchanges.
    """

    def measure(view: View) -> Found:
        kinds = {"F": target.forget, "H": held_out(target, seed)}
        asked = {k: [(f, t) for f in some for t in f.templates] for k, some in kinds.items()}
        texts = [(prompt(f, t), f.object) for some in asked.values() for f, t in some]
        with edited(view.model, view.edits, must_fire=bool(texts)):
            told = answer_tokens(view.model, view.model.tokenizer, texts)
        values = [token_signals(t, o) for t, (_, o) in zip(told, texts, strict=True)]
        found, start = {}, 0
        for subset, some in asked.items():
            part = values[start : start + len(some)]
            start += len(some)
            names = tuple(f.subject for f, _ in some), tuple(f.relation for f, _ in some)
            for signal in part[0] if part else ():
                each = np.array([v[signal] for v in part])
                found[Key("MIA", subset, signal)] = Scores(each, *names).by_fact()
        return found

    return measure


def held_out(target: Target, seed: int) -> tuple[Fact, ...]:
    """H: each forget fact with the object of another one of its relation."""
    new = exchanged(target.facts, target.forget, f"{seed} held out")
    return tuple(replace(f, object=new[f.key]) for f in target.forget)


@torch.no_grad()
def answer_tokens(
    model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]]
) -> list[Float[np.ndarray, "2 tokens"]]:
    """Log-probability of each token of an answer after its prompt, and how that stands out.

    The second row is the log-probability less its mean over the vocabulary, in standard deviations,
    both under the model's own distribution: the summand of Min-K%++.

    Args:
        texts: prompt and answer of each.
    """
    asked = tokenizer([p for p, _ in texts])["input_ids"] if texts else []
    answers = object_tokens(tokenizer, [a for _, a in texts]) if texts else []
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, (row, answer) in enumerate(zip(asked, answers, strict=True)):
        rows.setdefault((*row, *answer[:-1]), []).append(i)
    found: list[Any] = [None] * len(texts)
    unique, device = list(rows), device_of(model)
    for batch in batches_by_length(unique, min(MAX_TOKENS, MAX_LOGITS // len(tokenizer))):
        picked = [(r, i) for r, b in enumerate(batch) for i in rows[unique[b]]]
        lengths = [len(answers[i]) for _, i in picked]
        row = torch.tensor([r for r, i in picked for _ in answers[i]], device=device)
        back = torch.tensor([-k for n in lengths for k in range(n, 0, -1)], device=device)
        token = torch.tensor([t for _, i in picked for t in answers[i]], device=device)
        logits = next_logits(model, torch.tensor([unique[b] for b in batch], device=device))
        logp = logits[:, -max(lengths) :].float().log_softmax(-1)
        mean, deviation = _moments(logp)
        told = logp[row, back, token]
        both = torch.stack([told, (told - mean[row, back]) / deviation[row, back]]).cpu()
        for (_, i), part in zip(picked, both.split(lengths, dim=1), strict=True):
            found[i] = part.double().numpy()
    return found


def _moments(
    logp: Float[Tensor, "*batch vocab"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Mean and standard deviation of the log-probability of a token drawn from the model."""
    p, finite = logp.exp(), logp.nan_to_num(neginf=0.0)
    mean = (p * finite).sum(-1)
    return mean, (p * (finite - mean[..., None]).square()).sum(-1).sqrt().clamp(min=1e-6)


def token_signals(told: Float[np.ndarray, "2 tokens"], answer: str) -> dict[str, float]:
    """The signals of one text, from what `answer_tokens` read.

    `loss_nats` is per token, `min_k_nats` the mean of the lowest log-probabilities, `min_k_plus`
    that of the lowest standardised ones, `zlib_nats_per_byte` the loss over the length of the
    compressed answer, `phi` the log-odds of the whole answer (see `logit`), and `tokens` how
    many were read.

    Source: loss, Yeom 2018; Min-K%, 2310.16789; Min-K%++, 2404.02936; zlib, Carlini 2021. As in
    OpenUnlearning (2506.12618), on answer tokens alone.
    """
    n = max(1, int(LOWEST * told.shape[1]))
    lowest = np.sort(told, axis=1)[:, :n].mean(1)
    loss = -float(told[0].mean())
    return {
        "loss_nats": loss,
        "min_k_nats": float(lowest[0]),
        "min_k_plus": float(lowest[1]),
        "zlib_nats_per_byte": loss / len(zlib.compress(answer.encode())),
        "phi": float(logit(told[0].sum(keepdims=True))[0]),
        "tokens": float(told.shape[1]),
    }


def logit(logp_nats: Float[np.ndarray, " text"]) -> Float[np.ndarray, " text"]:
    """φ = log p / (1 - p), which is near to normal over models; finite where p rounds to 1.

    Source: Carlini 2022, 2112.03570, equation 4.
    """
    logp = np.minimum(logp_nats, -1e-7)
    return logp - np.log(-np.expm1(logp))


def auc(members: Float[np.ndarray, " m"], others: Float[np.ndarray, " n"]) -> float:
    """Probability that a member's value is the higher one, ties counted half."""
    ranks = stats.rankdata(np.concatenate([members, others]))[: len(members)]
    m, n = len(members), len(others)
    return float((ranks.sum() - m * (m + 1) / 2) / (m * n))


def auc_draws(members: Scores, others: Scores, seed: int) -> np.ndarray:
    """AUC under resampling of entities, the same draw for members and others."""
    names = sorted({*members.entities, *others.entities})
    column = {name: i for i, name in enumerate(names)}
    a, b = (np.array([column[e] for e in s.entities], dtype=int) for s in (members, others))
    wins = np.zeros((len(names), len(names)))
    order = np.argsort(b, kind="stable")
    starts = np.searchsorted(b[order], np.arange(len(names)))
    held = np.flatnonzero(np.bincount(b, minlength=len(names)))
    for i, value in zip(a.tolist(), members.values, strict=True):
        above = (value > others.values[order]) + 0.5 * (value == others.values[order])
        wins[i, held] += np.add.reduceat(above, starts[held])
    weights = entity_weights(len(names), seed)
    pairs = (weights @ np.bincount(a, minlength=len(names))) * (
        weights @ np.bincount(b, minlength=len(names))
    )
    drawn = ((weights @ wins) * weights).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pairs > 0, drawn / pairs, 0.5)


def privleak(edited: float, gold: float) -> float:
    """100 (AUC_E - AUC_G) / AUC_G, in percent: 0 as a model that never knew.

    Source: MUSE, 2407.06460, section 3.1. Differs: the released code puts 1 - AUC for both.

    Args:
        edited: AUC of the edited model.
        gold: AUC of the golds, above 0.
    """
    assert gold > 0, "a gold's AUC lies near 0.5"
    return 100 * (edited - gold) / gold


def read_leaks(cast: Cast, seed: int) -> tuple[Leak, ...]:
    """What each signal of `SIGNALS` tells of the edited model, beside original and golds.

    Two-sided: a forget fact that is pushed below what was never seen is given away as well.
    """
    tokens = cast.edited.get(Key("MIA", "F", "tokens"))
    return tuple(
        Leak(signal, why) if (why := _why_not(signal, tokens, cast)) else _leak(signal, cast, seed)
        for signal in SIGNALS
    )


def _why_not(signal: str, tokens: Scores | None, cast: Cast) -> str:
    if tokens is None:
        return "it was not measured"
    median = float(np.median(tokens.values))
    if signal in ON_LONG_TEXTS and median <= SHORT_TOKENS:
        return (
            f"half of the answers have no more than {median:g} token{'s' * (median != 1)}: on "
            f"{SHORT_TOKENS} or fewer the lowest fifth is one token, and a compressed answer is as "
            "long as any other"
        )
    if signal == "reference_nats" and len(cast.golds) < 2:
        return f"{len(cast.golds)} golds: wanted 2 or more, each one's reference being the others"
    return ""


def _leak(signal: str, cast: Cast, seed: int) -> Leak:
    pairs = [_likeness(signal, i, cast) for i in range(len(cast.models))]
    values = [auc(f.values, h.values) for f, h in pairs]
    draws = np.stack([auc_draws(f, h, seed) for f, h in pairs])
    few = pairs[0][0].n_entities < MIN_ENTITIES
    at = Interval(values[0], 0.0, 1.0) if few else percentile(values[0], draws[0])
    if not cast.golds:
        return Leak(signal, "", at, values[1], leaks=not at.low <= 0.5 <= at.high)
    gold = float(np.mean(values[2:]))
    gaps = draws[0] - gold_mean_draws(draws[2:], values[2:], seed)
    gap = Interval(values[0] - gold, -1.0, 1.0) if few else percentile(values[0] - gold, gaps)
    leaks = not gap.low <= 0 <= gap.high
    told = privleak(values[0], gold)
    return Leak(signal, "", at, values[1], tuple(values[2:]), gap, told, leaks)


def _likeness(signal: str, i: int, cast: Cast) -> tuple[Scores, Scores]:
    """How like a member model i finds each fact of F and of H."""
    stored = "loss_nats" if signal == "reference_nats" else signal
    keys = [Key("MIA", subset, stored) for subset in ("F", "H")]
    references = [g for j, g in enumerate(cast.golds) if j != i - 2]

    def look(key: Key) -> Scores:
        scores, minus = cast.models[i][key], 0.0
        if signal == "reference_nats":
            minus = np.mean([g[key].values for g in references], axis=0)
        return replace(scores, values=SIGNALS[signal] * (scores.values - minus))

    return look(keys[0]), look(keys[1])
