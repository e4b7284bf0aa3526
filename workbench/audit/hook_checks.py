"""Checks of edits that are hooks: what they leave untouched, when they fire, what others do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.audit.calling import BATCH_TOKENS, WAYS, batch_of, in_batches
from workbench.audit.hook_error import sae_of
from workbench.audit.probes.labels import Labels
from workbench.audit.probes.linear import Frame, Lesson, tuned
from workbench.audit.probes.rows import POSITIONS, PromptRows
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, Measure, View
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Intervention, Point, Site, edited, residuals
from workbench.models.score import (
    Question,
    Templates,
    answer,
    ask,
    batches_by_length,
    device_of,
    next_logits,
)

SAMPLE = 200
"""Prompts, evenly spaced among all, on which streams and ways of calling the model are compared."""

PARTS = ("x", "xhat", "err", "post", "xhat edited")


@dataclass(frozen=True)
class WeightDelta:
    """How the weights of two models differ (H0).

    Attributes:
        identical: every parameter and buffer is equal to the last bit.
        changed: names of tensors that differ.
        rel_fro: Frobenius norm of the change over that of the original's changed and unchanged
            tensors together.
        max_rank: the largest rank of a changed matrix's change; 0 if no matrix changed.
    """

    identical: bool
    changed: tuple[str, ...]
    rel_fro: float
    max_rank: int

    @property
    def changed_tensors(self) -> int:
        return len(self.changed)


def weight_delta(original: Any, changed: Any, tolerance: float = 1e-6) -> WeightDelta:
    """Compares all parameters and buffers of two models; a tensor that one lacks has changed.

    Args:
        tolerance: singular values below this share of the largest do not count towards the rank.
    """
    before, after = _tensors(original), _tensors(changed)
    names, total, moved, rank = [], 0.0, 0.0, 0
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        total += 0.0 if old is None else float(old.double().square().sum())
        if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
            names.append(name)
        elif not torch.equal(old, new):
            names.append(name)
            delta = new.double() - old.double()
            moved += float(delta.square().sum())
            if delta.ndim == 2:
                rank = max(rank, int(torch.linalg.matrix_rank(delta, rtol=tolerance)))
    return WeightDelta(not names, tuple(names), (moved / total) ** 0.5 if total else 0.0, rank)


def hook_checks(
    target: Target, seed: int = 0, controls: Sequence[Sequence[Intervention]] = ()
) -> dict[str, Measure]:
    """One job for each check; a view without edits finds nothing.

    H1 upstream: whether the stream before the first edit is the same to the last bit with it and
    without it. H2 split: what P1's reader makes of the stream before an edit that carries an SAE
    (`x`), of its reconstruction (`xhat`), of the error (`err`), of what the edit leaves (`post`),
    and of the reconstruction less what the edit took (`xhat edited`); fitted on each part, at the
    position that R_va prefers. H4 triggers: whether the edit changed anything in a prompt, and
    whether that prompt was answered; and whether other ways of calling the model give the same
    next token. H7: raw hits under matched random edits.

    Args:
        controls: each a list of edits like the audited ones, of random features.

    Source: the error of an SAE may carry the concept: Engels et al. 2024, arXiv 2410.14670.
    """

    def only_edited(check: Callable[[View], Found]) -> Measure:
        return lambda view: check(view) if view.edits else {}

    return {
        "H1 upstream": only_edited(lambda view: _upstream(view, target)),
        "H2 split": only_edited(lambda view: _split(view, target)),
        f"H4 triggers seed {seed}": only_edited(lambda view: _triggers(view, target)),
        f"H7 {len(controls)} random edits": only_edited(
            lambda view: _random_edits(view, target, controls)
        ),
    }


@dataclass
class _Tap:
    """Changes nothing and keeps what passed last: a place to read before or after an edit."""

    site: Site
    passed: Tensor | None = None

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        self.passed = resid.detach()
        return resid


@dataclass
class _Compare:
    """Changes nothing and keeps, of each pass, which rows differ from what a tap before it saw."""

    before: _Tap
    changed: list[Bool[Tensor, " batch"]] = field(default_factory=list)

    @property
    def site(self) -> Site:
        return self.before.site

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        self.changed.append((self.before.passed != resid.detach()).flatten(1).any(1))
        return resid


def _upstream(view: View, target: Target) -> Found:
    first = min(_depth(edit.site) for edit in view.edits)
    every = [Site(0, "resid_pre"), *(Site(layer) for layer in range(view.model.cfg.n_layers))]
    sites = [site for site in every if _depth(site) < first]
    if not sites:
        return {}
    questions = _sample(ask(target.forget, "audit"))
    plain = _streams(view.model, (), questions, sites)
    hooked = _streams(view.model, view.edits, questions, sites)
    return {
        Key("H1", "F", "equal", f"layer {layer}"): _scores(
            questions, [torch.equal(a[layer], b[layer]) for a, b in zip(plain, hooked, strict=True)]
        )
        for layer in range(len(sites))
    }


@torch.no_grad()
def _streams(
    model: Any, edits: Sequence[Intervention], questions: Sequence[Question], sites: list[Site]
) -> list[list[Tensor]]:
    """For each question, the stream at each site."""
    tokens = _tokens(model, questions)
    found: list[list[Tensor]] = [[] for _ in questions]
    # With edits the whole model runs, so that each of them fires.
    reach = [*sites, Site(model.cfg.n_layers - 1)] if edits else sites
    with edited(model, edits, must_fire=bool(edits)):
        for batch in batches_by_length(tokens, BATCH_TOKENS):
            read = residuals(model, batch_of(model, tokens, batch), list(dict.fromkeys(reach)))
            for row, i in enumerate(batch):
                found[i] = [read[site][row].cpu() for site in sites]
    return found


def _split(view: View, target: Target) -> Found:
    found: Found = {}
    carrying = [i for i, edit in enumerate(view.edits) if sae_of(edit) is not None]
    if not all(target.retain.get(name) for name in ("R_tr", "R_va")):
        return {}  # readers are fitted on other entities, as everywhere
    for order, i in enumerate(carrying):
        suffix = f", edit {order + 1}" if order else ""
        found |= _split_at(view, target, i, suffix)
    return found


def _split_at(view: View, target: Target, index: int, suffix: str) -> Found:
    labels = Labels.of(target)
    sets: dict[str, tuple[Sequence[Fact], Templates]] = {
        "R_tr": (target.retain["R_tr"], "train"),
        "R_va": (target.retain["R_va"], "audit"),
        "F": (target.forget, "audit"),
    }
    rows = {name: _parts(view, index, *given) for name, given in sets.items()}
    found: Found = {}
    for part in PARTS:
        frame = Frame.of(rows["R_tr"][part])
        lesson = {n: Lesson.of(labels, frame(rows[n][part]), sets[n][0]) for n in sets}
        readers = tuned(labels, lesson["R_tr"], lesson["R_va"])
        best = int(readers.hits(lesson["R_va"]).mean(1).nan_to_num().argmax())
        hits = readers.hits(lesson["F"])[best].double().numpy()
        found[Key("H2", "F", "hit", f"{part}{suffix}")] = Scores(
            hits, tuple(f.subject for f in target.forget), tuple(f.relation for f in target.forget)
        )
    return found


@torch.no_grad()
def _parts(
    view: View, index: int, facts: Sequence[Fact], templates: Templates
) -> dict[str, Float[Tensor, "position fact d_model"]]:
    """Rows of every part of the stream at one edit, averaged over a fact's templates."""
    model, edit = view.model, view.edits[index]
    sae, before, after = sae_of(edit), _Tap(edit.site), _Tap(edit.site)
    upstream = [e for e in view.edits[:index] if _depth(e.site) <= _depth(edit.site)]
    later = [e for e in view.edits[index + 1 :] if _depth(e.site) < _depth(edit.site)]
    prompts = PromptRows.of(model, facts, templates)
    sums = {part: torch.zeros(len(POSITIONS), len(facts), model.cfg.d_model) for part in PARTS}
    with edited(model, [*upstream, before, edit, after, *later], must_fire=bool(facts)):
        for batch in batches_by_length(prompts.tokens, BATCH_TOKENS):
            residuals(model, prompts.batch(batch, device_of(model)), [edit.site])
            assert before.passed is not None and after.passed is not None
            ends = torch.stack([prompts.subject[batch], torch.full((len(batch),), -1)])
            rows = torch.arange(len(batch))
            x, post = before.passed[rows, ends].float(), after.passed[rows, ends].float()
            xhat = sae.decode(sae.encode(x.to(sae.W_dec))).to(x)
            split = (x, xhat, x - xhat, post, xhat + post - x)
            for part, values in zip(PARTS, split, strict=True):
                sums[part].index_add_(1, prompts.owner[batch], values.cpu())
    return {part: total / prompts.counts[:, None] for part, total in sums.items()}


def _triggers(view: View, target: Target) -> Found:
    found: Found = {}
    families: tuple[tuple[str, Templates], ...] = (("B1", "train"), ("B2", "audit"))
    for family, templates in families:
        questions = ask(target.forget, templates)
        fired, hits = _fired_and_hit(view, target, questions)
        found[Key("H4", "F", "fired", family)] = _scores(questions, fired)
        found[Key("H4", "F", "hit", family)] = _scores(questions, hits)
    questions = _sample(ask(target.forget, "audit"))
    rows = _tokens(view.model, questions)
    with edited(view.model, view.edits):
        plain = in_batches(view.model, rows)
        for name, way in WAYS.items():
            if (said := way(view.model, rows)) is not None:
                same = [a == b for a, b in zip(said, plain, strict=True)]
                found[Key("H4", "F", "same_answer", name)] = _scores(questions, same)
    return found


def _fired_and_hit(
    view: View, target: Target, questions: Sequence[Question]
) -> tuple[list[bool], list[bool]]:
    """For each prompt, whether any edit changed any token's stream, and whether it was answered."""
    model, fired = view.model, [False] * len(questions)
    compares = [_Compare(_Tap(edit.site)) for edit in view.edits]
    watched = [w for c, edit in zip(compares, view.edits, strict=True) for w in (c.before, edit, c)]
    rows = _tokens(model, questions)
    with edited(model, watched), torch.no_grad():
        for batch in batches_by_length(rows, BATCH_TOKENS):
            next_logits(model, batch_of(model, rows, batch))
            for changed in (c.changed.pop().tolist() for c in compares):
                for i, moved in zip(batch, changed, strict=True):
                    fired[i] = fired[i] or moved
    with edited(model, view.edits):
        hits = answer(model, model.tokenizer, target.facts, questions).hits.tolist()
    return fired, hits


def _random_edits(view: View, target: Target, controls: Sequence[Sequence[Intervention]]) -> Found:
    questions = ask(target.forget, "audit")
    found: Found = {}
    for i, control in enumerate(controls):
        with edited(view.model, control):
            answers = answer(view.model, view.model.tokenizer, target.facts, questions)
        found[Key("H7", "F", "raw", f"random {i}")] = _scores(questions, answers.hits.tolist())
    return found


def _depth(site: Site) -> tuple[int, int]:
    """Where a site is along the stream; one block's end is the next one's start."""
    if site.point == "resid_post":
        return site.layer + 1, 0
    return site.layer, get_args(Point).index(site.point)


def _tensors(model: Any) -> dict[str, Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().cpu() for name, tensor in named}


def _sample(questions: Sequence[Question]) -> list[Question]:
    count = min(SAMPLE, len(questions))
    return [questions[i * len(questions) // count] for i in range(count)]


def _tokens(model: Any, questions: Sequence[Question]) -> list[list[int]]:
    return model.tokenizer([q.prompt for q in questions])["input_ids"]


def _scores(questions: Sequence[Question], values: Sequence[bool]) -> Scores:
    subjects = tuple(q.fact.subject for q in questions)
    relations = tuple(q.fact.relation for q in questions)
    return Scores(np.array(values, dtype=float), subjects, relations)
