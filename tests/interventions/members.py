"""One of each kind of edit, and of each way to put edits together."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.hooks import Site
from workbench.interventions import (
    Clamp,
    Firing,
    Gate,
    MeanAblate,
    Probe,
    Project,
    Replace,
    Rescale,
    Sequence,
    Steer,
    Substitute,
    Weighted,
    but_bos,
    random_control,
)

FEATURES = torch.tensor([3, 17, 40])
OTHERS = torch.tensor([5, 29])
SITE = Site(1)
KINDS = ("topk", "standard", "jumprelu", "gated")
Make = Callable[[Any], Any]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ROWS = 2 * normal(200, 32, seed=3)
LABELS = ROWS[:, :3].sum(-1) > 0

OF_FEATURES: dict[str, Make] = {
    "rescale": lambda sae: Rescale(sae, FEATURES, -0.5),
    "clamp active": lambda sae: Clamp(sae, FEATURES, -1.0),
    "clamp everywhere": lambda sae: Clamp(sae, FEATURES, -1.0, "everywhere"),
    "clamp absolute": lambda sae: Clamp(sae, FEATURES, -3.0, "everywhere", "absolute"),
    "mean ablate active": lambda sae: MeanAblate.fit(sae, FEATURES, ROWS, "active"),
    "mean ablate everywhere": lambda sae: MeanAblate.fit(sae, FEATURES, ROWS),
    "replace": lambda sae: Replace(sae, FEATURES, OTHERS),
}
OF_DIRECTIONS: dict[str, Make] = {
    "steer simple": lambda sae: Steer.decoder(sae, 3, -1.0),
    "steer orthogonal": lambda sae: Steer.decoder(sae, 3, 0.5, "orthogonal"),
    "steer capped": lambda sae: Steer.decoder(sae, 3, 0.0, "capped"),
    "project leace": lambda sae: Project.leace(SITE, ROWS, LABELS.long() + (ROWS[:, 5] > 1)),
    "project mean difference": lambda sae: Project.mean_difference(
        SITE, ROWS[LABELS], ROWS[~LABELS]
    ),
    "project probe": lambda sae: Project.probe(SITE, ROWS, LABELS),
}
EVIDENCE: dict[str, Callable[[Any], Any]] = {
    "weighted": lambda sae: Weighted(sae, normal(sae.cfg.d_sae, seed=1).to(sae.W_dec.dtype)),
    "firing": lambda sae: Firing(sae, FEATURES),
    "probe": lambda sae: Probe(normal(32, seed=4), 0.1, SITE),
}


def gated(edit: Make, evidence: str = "weighted", over: Any = "latched") -> Make:
    threshold = 0.2 if evidence == "firing" else 0.5
    return lambda sae: Gate(edit(sae), EVIDENCE[evidence](sae), threshold, over)


def several(sae: Any) -> Sequence:
    """Feature edits side by side and apart, of two SAEs' kinds of reading."""
    return Sequence(
        (
            Rescale(sae, FEATURES, -0.5),
            Clamp(sae, OTHERS, 0.5, "everywhere"),
            Steer.decoder(sae, 7, 0.3),
            Clamp(sae, FEATURES[:1], -1.0),
        )
    )


OF_GATES: dict[str, Make] = {
    f"gate {over} {evidence}": gated(OF_FEATURES["clamp everywhere"], evidence, over)
    for over in ("token", "latched", "share")
    for evidence in EVIDENCE
} | {"but bos": lambda sae: but_bos(OF_FEATURES["clamp everywhere"](sae))}
OF_SEVERAL: dict[str, Make] = {
    "sequence": several,
    "gated sequence": gated(several),
    "gated steering": gated(OF_DIRECTIONS["steer simple"], "probe"),
    "gate in a gate": gated(gated(OF_FEATURES["clamp everywhere"], "probe")),
    "sequence with a gate": lambda sae: Sequence(
        (several(sae), gated(OF_FEATURES["rescale"], "firing", "share")(sae))
    ),
}
SUBSTITUTE: dict[str, Make] = {"substitute": Substitute}
MEMBERS = OF_FEATURES | OF_DIRECTIONS | OF_GATES | OF_SEVERAL | SUBSTITUTE
CONTROLS: dict[str, Make] = {
    f"control of {name}": lambda sae, make=make: random_control(make(sae), 5, ROWS)
    for name, make in MEMBERS.items()
    if name not in SUBSTITUTE
}

CASES: list[tuple[str, str]] = [
    *((name, kind) for name in OF_FEATURES | SUBSTITUTE for kind in KINDS),
    *((name, "topk") for name in OF_DIRECTIONS),
    *((name, kind) for name in OF_GATES | OF_SEVERAL for kind in ("topk", "jumprelu")),
    *((name, "topk") for name in CONTROLS),
]
"""Each member on each kind of SAE to which its computation differs."""


def member(name: str, sae: Any) -> Any:
    return (MEMBERS | CONTROLS)[name](sae)


def unchecked(kind: type, **fields: Any) -> Any:
    """An edit built past the checks of types that the test run makes."""
    edit = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(edit, name, value)
    edit.__post_init__()
    return edit
