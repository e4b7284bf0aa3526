"""Erasure: no linear map reads a forget fact's object where a gate finds the target."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError, ModelError
from workbench.facts.target import Target
from workbench.hooks import Intervention, Site, edited
from workbench.interventions import Gate, Probe, Project
from workbench.models.score import Question
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.gates import Shown, shown, spared_from, streams_of


@dataclass(frozen=True)
class Config:
    """Where, and how readily.

    Attributes:
        layers: after which blocks; None: all.
        false_alarms: share of retained prompts on which gates may open, all gates together.
    """

    layers: tuple[int, ...] | None = (1,)
    false_alarms: float = 0.05

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))


DEFAULT = Config()
STRENGTHS = tuple(Config(false_alarms=share) for share in (0.02, 0.05, 0.08))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Makes the object asked for linearly unreadable in prompts that are found to be the target's.

    What is certified: over the tokens of the forget prompts in training templates on which the gate
    of an edited site is open, all objects of a relation have the same mean stream at that site, so
    no linear map tells the object of a fact asked better than its relation alone does. Nothing is
    certified where the gate stays shut, of other templates, of later sites, or of readers that are
    not linear. `told` says how many prompts open each gate.

    The objects are shared with facts that stay, so the projection cannot act on all texts; behind a
    gate, which acts by the token, weights cannot hold it, and it is a hook. To erase instead
    whether a token is about the target, on all texts, was found to cost what stays more than the
    target in the bundled world, and, folded into weights, to break the model.

    Later sites are fitted on what earlier ones leave.

    Raises:
        ModelError: a layer that the model does not have.
        EditError: no gate opens on forget prompts of two objects of a relation.

    Source: Belrose et al. 2023, arXiv 2306.03819, Theorem 4.3; site after site as their concept
    scrubbing. Differs: rows are centred within each relation, so that what is asked stays readable,
    and the projection acts behind a gate.
    """
    require_arm("leace", model, target, ("R_tr",))
    layers = _layers(model, config.layers)
    with metered(model) as meter:
        given, gates, told = shown(target, seed), [], {"open": [], "rank": [], "rows": []}
        for layer in layers:
            alarms = config.false_alarms / len(layers)
            gate, found = _erased_at(model, given, Site(layer), gates, alarms)
            gates.append(gate)
            for name, value in found.items():
                told[name].append(value)
    claim = "certified for linear readers"
    arm = Arm("leace", model, tuple(gates), claim=claim, saw=(FORGET, RETAINED, TEXTS), told=told)
    return made(arm, meter, config, seed)


def _erased_at(
    model: Any, given: Shown, site: Site, before: Sequence[Intervention], false_alarms: float
) -> tuple[Gate, dict[str, Any]]:
    """The gated projection at a site, fitted on the streams that the edits before it leave."""
    with edited(model, before):
        forget, others = (
            streams_of(model, asked, site, torch.float64) for asked in (given.forget, given.others)
        )
        probe = summed_probe(forget, others, site)
        nothing = torch.zeros(forget[0].shape[1], 1, dtype=torch.float64)
        shut = Gate(Project(site, nothing, nothing.T, nothing[:, 0]), probe, 0.0, "latched")
        gate = spared_from(shut, model, given, false_alarms)
    rows, relations, objects = open_rows(gate, given.forget, forget)
    project = within(site, rows, relations, objects)
    opened = sum(bool(gate.open_at(s).any()) for s in forget) / len(forget)
    told = {"open": round(opened, 4), "rank": project.rank, "rows": len(rows)}
    return replace(gate, edit=project), told


def summed_probe(
    concept: Sequence[Float[Tensor, "_pos d_model"]],
    others: Sequence[Float[Tensor, "_pos d_model"]],
    site: Site,
) -> Probe:
    """A logistic regression of prompts on the sum of their tokens' streams but for BOS.

    There is no other intercept than one for each token, since a gate's evidence starts from zero.
    """
    from sklearn.linear_model import LogisticRegression

    summed = torch.stack([s[1:].sum(0) for s in (*concept, *others)])
    # The bias is added at each token, so it is a weight of how many there are.
    lengths = torch.tensor([len(s) - 1 for s in (*concept, *others)]).to(summed)
    x = torch.cat([summed, lengths[:, None]], dim=1)
    scale = x.std(0, correction=0).clamp_min(1e-6)
    y = [1] * len(concept) + [0] * len(others)
    found = LogisticRegression(max_iter=5000, fit_intercept=False).fit((x / scale).cpu().numpy(), y)
    *direction, bias = (torch.from_numpy(found.coef_[0]).to(x) / scale).tolist()
    return Probe(torch.tensor(direction).to(x), bias, site)


def open_rows(
    gate: Gate, asked: Sequence[Question], streams: Sequence[Float[Tensor, "_pos d_model"]]
) -> tuple[Float[Tensor, "row d_model"], Int[Tensor, " row"], Int[Tensor, " row"]]:
    """The tokens on which a gate is open, with relation and object of the fact that is asked.

    Raises:
        EditError: it opens on none.
    """
    relations = {name: i for i, name in enumerate(dict.fromkeys(q.fact.relation for q in asked))}
    named = dict.fromkeys((q.fact.relation, q.fact.object) for q in asked)
    objects = {name: i for i, name in enumerate(named)}
    rows, places = [], []
    for q, stream in zip(asked, streams, strict=True):
        opened = stream[gate.open_at(stream)]
        place = relations[q.fact.relation], objects[q.fact.relation, q.fact.object]
        rows.append(opened)
        places += [place] * len(opened)
    if not places:
        raise EditError(
            f"leace: the gate at {gate.site.name} opens on no forget prompt: nothing there tells "
            "the target from what stays; name other layers or allow more false alarms"
        )
    of = torch.tensor(places)
    return torch.cat(rows), of[:, 0], of[:, 1]


def within(
    site: Site,
    rows: Float[Tensor, "row d_model"],
    relations: Int[Tensor, " row"],
    objects: Int[Tensor, " row"],
) -> Project:
    """The projection after which all objects of a relation have one mean; relations keep theirs."""
    centred = rows.clone()
    for relation in relations.unique():
        mine = (relations == relation).to(rows.device)
        centred[mine] -= rows[mine].mean(0)
    return replace(Project.leace(site, centred, objects.to(rows.device)), bias=rows.mean(0))


def _layers(model: Any, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    count = len(model.blocks)
    chosen = tuple(range(count)) if layers is None else layers
    if not chosen or not all(0 <= layer < count for layer in chosen):
        raise ModelError(
            f"leace: layers {list(chosen)} were asked for, and the model has 0 to {count - 1}: "
            "name some of these, or None for all"
        )
    return chosen
