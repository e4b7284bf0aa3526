"""Attacks that find what is not there, beside honest ones that do not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.audit.attacks import AttackConfig, attacks, injection_index, teaching_attack
from workbench.audit.endpoints import MAX_INJECTION
from workbench.audit.probes import permuted, probes, template_split_probe
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.facts.contract import priors
from workbench.facts.target import Target

LEAK_MARGIN = 0.05
HINT = "teach: hint"
HONEST = AttackConfig(("W1",), lrs=(3e-4,), folds=1)


@dataclass(frozen=True)
class Trap:
    """What a broken and an honest attack find in models that know nothing of the target.

    Attributes:
        limit: above which an attack tells nothing about what was left.
        broken: by model or attack; all above the limit, or the trap is none.
        honest: the same of the honest attack; all within the limit.
        beside: of attacks that hand over the answer to a model that may not take it up; nothing is
            asked of them.
    """

    number: int
    name: str
    limit: float
    broken: dict[str, float]
    honest: dict[str, float]
    beside: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return min(self.broken.values()) > self.limit >= max(self.honest.values())


def leaky_probe(original: Any, golds: Sequence[Any], target: Target, seed: int = 0) -> Trap:
    """Probe accuracy on golds and on the shuffled original, which know no forget fact.

    The broken probe is fitted on the very entities that it is scored on, in other templates: it
    remembers names. The honest one is P1 at the place that R_va chooses.
    """
    views = [View("permuted", "", permuted(original, seed))]
    views += [View(f"gold-{i}", "", gold) for i, gold in enumerate(golds)]
    (honest,) = probes(target, ("P1",), seed).values()
    shares = priors(target.retained)
    known = [max(shares[f.relation].values()) for f in target.forget if f.relation in shares]
    prior = float(np.mean(known))
    return Trap(
        11,
        "probe split by template",
        prior + LEAK_MARGIN,
        {v.role: max(s.mean for s in template_split_probe(v, target).values()) for v in views},
        {v.role: _chosen(honest(v)) for v in views},
    )


def teaching(original: Any, golds: Sequence[Any], target: Target, seed: int = 0) -> Trap:
    """Injection indices: how far an attack lifts golds toward what the original knows.

    The broken attacks train on the answers that they are scored on; the honest one is W1. A prompt
    that states the answer teaches only a model that reads its prompt, which small ones do not, so
    it stands beside.
    """
    taught, honest = (
        {name: _injected(job, original, golds) for name, job in jobs.items()}
        for jobs in (teaching_attack(target, seed), attacks(target, HONEST, seed))
    )
    told = {name: taught.pop(name) for name in list(taught) if name == HINT}
    return Trap(12, "teaching attacks", MAX_INJECTION, taught, honest, told)


def _injected(job: Measure, original: Any, golds: Sequence[Any]) -> float:
    """The injection index of a job on V, by the golds' means."""
    courses = [_course(job(View(f"gold-{i}", "", gold))) for i, gold in enumerate(golds)]
    before = float(np.mean([c[0] for c in courses]))
    after = float(np.mean([c[-1] for c in courses]))
    return injection_index(after, before, _course(job(View("original", "", original)))[0])


def _course(found: Found) -> list[float]:
    """Means on V before the attack and after each number of steps."""
    keys = sorted((key for key in found if key.subset == "V"), key=lambda key: key.x)
    return [found[key].mean for key in keys]


def _chosen(found: Found) -> float:
    """Hits on F at the place that reads R_va best."""
    places = [key for key in found if key[:3] == Key("P1", "R_va", "hit")[:3]]
    best = max(places, key=lambda key: found[key].mean)
    return found[best._replace(subset="F")].mean
