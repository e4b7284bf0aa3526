"""A workbench for unlearning research: what a model knows, where, and whether it has forgotten.

The public names below are imported when they are first used, so that `import workbench` costs
nothing.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.activations import Activations, ActivationStream, harvest
    from workbench.audit import AuditConfig, AuditReport, Measurement, audit, verify
    from workbench.facts import (
        Fact,
        FactSet,
        Target,
        build_valley,
        check_contract,
        load_facts,
        save_facts,
    )
    from workbench.hooks import Site, captured, edited
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
        bake,
        but_bos,
        everywhere,
        load_edit,
        random_control,
        random_controls,
        save_baked,
        save_edit,
    )
    from workbench.locate import (
        Concept,
        ConceptFeatures,
        Goal,
        choose_jointly,
        exact_effects,
        locate,
    )
    from workbench.models import LMConfig, golds, load_golds, load_model, recall, train_lm
    from workbench.report import browse, write_html
    from workbench.sae import TrainConfig, check_sae, load_sae, train_sae, train_saes
    from workbench.unlearn import (
        METHODS,
        Arm,
        choose_strength,
        load_arm,
        method,
        read_edited,
        save_arm,
    )

__version__ = "0.1.0"

PUBLIC = {
    "load_facts": "workbench.facts",
    "save_facts": "workbench.facts",
    "build_valley": "workbench.facts",
    "check_contract": "workbench.facts",
    "FactSet": "workbench.facts",
    "Fact": "workbench.facts",
    "Target": "workbench.facts",
    "load_model": "workbench.models",
    "load_golds": "workbench.models",
    "train_lm": "workbench.models",
    "LMConfig": "workbench.models",
    "golds": "workbench.models",
    "recall": "workbench.models",
    "Site": "workbench.hooks",
    "captured": "workbench.hooks",
    "edited": "workbench.hooks",
    "harvest": "workbench.activations",
    "Activations": "workbench.activations",
    "ActivationStream": "workbench.activations",
    "train_sae": "workbench.sae",
    "train_saes": "workbench.sae",
    "load_sae": "workbench.sae",
    "check_sae": "workbench.sae",
    "TrainConfig": "workbench.sae",
    "locate": "workbench.locate",
    "Concept": "workbench.locate",
    "ConceptFeatures": "workbench.locate",
    "exact_effects": "workbench.locate",
    "choose_jointly": "workbench.locate",
    "Goal": "workbench.locate",
    "Clamp": "workbench.interventions",
    "Rescale": "workbench.interventions",
    "MeanAblate": "workbench.interventions",
    "Replace": "workbench.interventions",
    "Substitute": "workbench.interventions",
    "Steer": "workbench.interventions",
    "Project": "workbench.interventions",
    "Gate": "workbench.interventions",
    "Weighted": "workbench.interventions",
    "Firing": "workbench.interventions",
    "Probe": "workbench.interventions",
    "Sequence": "workbench.interventions",
    "but_bos": "workbench.interventions",
    "random_control": "workbench.interventions",
    "random_controls": "workbench.interventions",
    "bake": "workbench.interventions",
    "everywhere": "workbench.interventions",
    "save_baked": "workbench.interventions",
    "save_edit": "workbench.interventions",
    "load_edit": "workbench.interventions",
    "audit": "workbench.audit",
    "AuditConfig": "workbench.audit",
    "verify": "workbench.audit",
    "AuditReport": "workbench.audit",
    "Measurement": "workbench.audit",
    "write_html": "workbench.report",
    "browse": "workbench.report",
    "METHODS": "workbench.unlearn",
    "Arm": "workbench.unlearn",
    "method": "workbench.unlearn",
    "choose_strength": "workbench.unlearn",
    "save_arm": "workbench.unlearn",
    "load_arm": "workbench.unlearn",
    "read_edited": "workbench.unlearn",
}
"""Each public name and the module it is taken from."""

__all__ = list(PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})


class _Workbench(ModuleType):
    """Keeps `workbench.audit` and `workbench.locate` the functions.

    Python binds an imported subpackage to its name in the parent package; for public names that is
    refused here. What is in these two packages is reached by `from workbench.audit import ...`, not
    by `import workbench.audit.x as y`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Workbench
