"""What a report tells beside its verdict: derived knowledge, leaks, depth, use, text, coverage."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from statistics import fmean

import numpy as np

from workbench.audit.derivation import derivation_flags
from workbench.audit.lira import SHADOW_ROLES, u_lira
from workbench.audit.privacy import read_leaks
from workbench.audit.probes.depth import removal_depth
from workbench.audit.reading import Cast
from workbench.audit.schema import (
    Covered,
    Depth,
    DepthRow,
    Derivation,
    DerivedFlag,
    Erasure,
    Family,
    Gap,
    LeakRow,
    ShadowAttack,
)
from workbench.audit.statistics import Interval, Key, entity_interval
from workbench.audit.views import Found
from workbench.errors import AuditError

WAYS = ("stored", "latent", "chained")
DEEP = ("success_du", "recall", "acc", "derivable")
TEXT = ("entropy2_bits", "entropy3_bits", "repeat4", "refused")
CHECKLISTS: dict[str, dict[str, tuple[str, ...]]] = {
    "eight methods to evaluate unlearning (2402.16835)": {
        "other languages": ("B10",),
        "jailbreaks": ("B8", "B10"),
        "relearning in context": ("B7",),
        "fine-tuning": ("W1", "W2", "W3", "W4"),
        "downstream tasks": ("B5", "B6"),
        "latent knowledge": ("P1", "P2", "P3", "P4"),
        "comparison with retraining": ("gold",),
        "side effects nearby": ("damage", "kept"),
    },
    "model tampering (2502.05209)": {
        "fine-tuning on other and on the same data": ("W1", "W2", "W3"),
        "low-rank adapters": ("W4",),
        "perturbed weights": ("W5", "W6", "W7"),
        "perturbed activations": ("W8", "W9"),
        "perturbed inputs": ("B9", "B10", "W10"),
    },
    "three pitfalls (2506.00688)": {
        "injected information": ("gold", "W9c"),
        "dependence on the task": ("B1", "B2", "B3", "B6"),
        "spurious correlation": ("P6", "P8", "gold"),
    },
}
"""Published checklists, and the items of the battery that speak to each entry."""


def make_derivation(cast: Cast, chance: dict[str, float] | float, seed: int) -> Derivation | None:
    """Who can still derive what; None where nothing follows from the target."""
    scored = [s for k, s in cast.edited.items() if k[:2] == ("derivation", "D")]
    if not scored:
        return None
    flags = derivation_flags(cast, chance, seed)
    return Derivation(
        max(len(s.by_fact().values) for s in scored),
        {w: by_role(cast, Key("derivation", "D", "raw", w)) for w in WAYS},
        {m: by_role(cast, Key("derivation", "D", m)) for m in DEEP},
        tuple(
            DerivedFlag(f.name, f.raised, f.note, f.value, _gap(f.gap), f.gold, f.gold_too)
            for f in flags
        ),
    )


def make_leaks(cast: Cast, seed: int) -> tuple[LeakRow, ...]:
    """What each signal of membership tells; none if they were not measured."""
    if Key("MIA", "F", "tokens") not in cast.edited:
        return ()
    return tuple(
        LeakRow(
            leak.signal,
            leak.why,
            _gap(leak.auc),
            leak.original,
            leak.golds,
            _gap(leak.gap),
            leak.privleak,
            leak.leaks,
        )
        for leak in read_leaks(cast, seed)
    )


def make_shadows(
    facts: Mapping[tuple[str, str], Found], cast: Cast, seed: int
) -> ShadowAttack | None:
    """U-LiRA on the edited model; None where no shadows were given."""
    phi = Key("MIA", "F", "phi")

    def rows(role: str) -> np.ndarray:
        found = [f[phi].values for (r, _), f in facts.items() if r.partition("-")[0] == role]
        return np.stack(found) if found else np.zeros((0, len(cast.edited[phi].values)))

    if phi not in cast.edited:
        return None
    unlearned, retrained = (rows(role) for role in SHADOW_ROLES)
    if not len(unlearned) and not len(retrained):
        return None
    n, counts = len(cast.edited[phi].values), (len(unlearned), len(retrained))
    try:
        found = u_lira(unlearned, retrained, cast.edited[phi].values[None], rows("gold"))
    except AuditError as error:
        return ShadowAttack(str(error), None, None, None, None, n, *counts, leaks=False)
    low = entity_interval(replace(cast.edited[phi], values=found.found.astype(float)), seed).low
    told = (found.auc, found.tpr_5, found.tpr_1, low)
    return ShadowAttack("", *told, n, *counts, leaks=low > 2 * 0.05)


def make_depth(cast: Cast) -> Depth | None:
    """P10 with its gate; None where it was not measured."""
    edited, golds = _lost(cast.edited), [_lost(g) for g in cast.golds]
    if not edited:
        return None

    def gold(subset: str, layer: str) -> float | None:
        found = [g[subset, layer] for g in golds if (subset, layer) in g]
        return fmean(found) if found else None

    layers = [layer for subset, layer in edited if subset == "F"]
    rows = tuple(
        DepthRow(
            layer,
            edited["F", layer],
            gold("F", layer),
            edited.get(("R_te", layer)),
            gold("R_te", layer),
        )
        for layer in layers
    )
    whole = [r for r in rows if r.G is not None and r.G_kept is not None]
    if not whole:
        return Depth(rows, None, None, "no golds, or no retained facts to tell their basis by")

    def each(found: Found) -> np.ndarray:
        return np.stack([found[Key("P10", "F", "lost_nats", r.layer)].values for r in whole])

    told = removal_depth(
        each(cast.edited),
        np.mean([each(g) for g in cast.golds], axis=0),
        np.array([r.G_kept for r in whole], dtype=float),
    )
    return Depth(rows, told.value, told.coverage if told.value is not None else None, told.why)


def make_erasures(cast: Cast) -> tuple[Erasure, ...]:
    """P9: hits under random subspaces less hits under the concept's, by layer."""
    layers = dict.fromkeys(
        k.setting.split(",")[0]
        for k in cast.edited
        if k[:3] == ("P9", "F", "raw") and k.setting.endswith("concept")
    )
    rows = []
    for layer in layers:
        golds = [_used(g, layer) for g in cast.golds]
        guard = cast.edited[Key("P9", "F", "guard", f"{layer}, concept")]
        rows.append(
            Erasure(
                layer,
                _used(cast.edited, layer),
                _used(cast.original, layer),
                fmean(golds) if golds else None,
                float(guard.values.max()),
            )
        )
    return tuple(rows)


def make_fluency(cast: Cast) -> dict[str, tuple[float, float, float | None]]:
    """Of continued texts, by measure: the edited model, the original, the golds."""
    keys = [k for k in cast.edited if k.endpoint == "fluency" and k.metric in TEXT]
    found = {}
    for key in keys:
        at = by_role(cast, key)
        found[key.metric] = at["E"], at["O"], at["G"]
    return found


def make_coverage(
    edited: Iterable[Key], n_golds: int, families: Iterable[Family]
) -> tuple[Covered, ...]:
    """Each entry of the published checklists, with what was run that speaks to it.

    A way of asking that the original itself cannot answer was asked in vain, and counts for none.
    """
    asked = {f.id: False for f in families}
    asked |= {f.id: True for f in families if f.kept}
    ran = {key.endpoint for key in edited if asked.get(key.endpoint, True)}
    ran |= {"gold"} if n_golds else set()
    return tuple(
        Covered(checklist, item, by, tuple(b for b in by if b in ran))
        for checklist, items in CHECKLISTS.items()
        for item, by in items.items()
    )


def by_role(cast: Cast, key: Key) -> dict[str, float | None]:
    """The mean of one measurement by `O`, `E` and `G`."""
    golds = [g[key].mean for g in cast.golds if key in g]
    return {
        "O": cast.original[key].mean if key in cast.original else None,
        "E": cast.edited[key].mean if key in cast.edited else None,
        "G": fmean(golds) if golds else None,
    }


def _used(found: Found, layer: str) -> float:
    hits: Callable[[str], float] = lambda what: found[Key("P9", "F", "raw", what)].mean  # noqa: E731
    random = [k.setting for k in found if k.setting.startswith(f"{layer}, random")]
    return fmean(hits(setting) for setting in random) - hits(f"{layer}, concept")


def _lost(found: Found) -> dict[tuple[str, str], float]:
    return {(k.subset, k.setting): s.mean for k, s in found.items() if k.endpoint == "P10"}


def _gap(interval: Interval | None) -> Gap | None:
    return None if interval is None else Gap(interval.value, interval.low, interval.high)
