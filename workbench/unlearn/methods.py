"""All methods by name: the family of each, and the file that says what it does."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from workbench.errors import WorkbenchError
from workbench.facts.target import Target
from workbench.unlearn.arm import Arm, Spent, made, metered

FAMILIES: dict[str, tuple[str, ...]] = {
    "gradient": (
        *("grad_ascent", "grad_diff", "kl_retain", "npo", "simnpo"),
        *("idk_nll", "idk_dpo", "alt_po", "undial", "wga"),
    ),
    "representation": ("rmu", "circuit_breaker", "cir"),
    "locate and edit": ("rome", "memit", "alphaedit", "ft_l", "ft_m"),
    "importance": ("influence", "ssd", "needle"),
    "arithmetic": ("task_vector", "whp"),
    "erasure": ("leace",),
    "sae": ("sae_clamp", "sae_gate", "sae_conditional", "crisp"),
    "exact": ("retrain", "sisa", "adapter_removal"),
    "distillation": ("undo",),
    "system": ("in_context", "guardrail", "keyword_filter", "classifier_filter"),
    "controls": ("no_change", "random_edit", "random_features"),
}
"""Methods by family; each is a file of this room."""


@dataclass(frozen=True)
class Method:
    """A way of unlearning: one file with one function.

    The file holds `unlearn(model, target, config, seed) -> Arm`, and may hold `DEFAULT`, the config
    where none is named, and `STRENGTHS`, configs from the weakest on, of which one is chosen.
    """

    name: str
    family: str
    module: ModuleType

    @property
    def unlearn(self) -> Callable[..., Arm]:
        return self.module.unlearn

    @cached_property
    def default(self) -> Any:
        return getattr(self.module, "DEFAULT", None)

    @cached_property
    def strengths(self) -> tuple[Any, ...]:
        """Configs to choose from; the default alone where the file lists none."""
        return tuple(getattr(self.module, "STRENGTHS", ())) or (self.default,)

    def __call__(self, model: Any, target: Target, seed: int = 0) -> Arm:
        """The arm at the default strength."""
        return self.arm(model, target, self.default, seed)

    def arm(self, model: Any, target: Target, config: Any, seed: int) -> Arm:
        """The arm of a config; where the file measured no cost, it is measured here.

        Raises:
            WorkbenchError: the function returned something else than an arm.
        """
        with metered(model) as meter:
            arm = self.unlearn(model, target, config, seed)
        if not isinstance(arm, Arm):
            raise WorkbenchError(
                f"{self.name}: unlearn returned a {type(arm).__name__}, wanted an Arm"
            )
        arm = arm if arm.cost != Spent() else made(arm, meter, config, seed)
        return replace(arm, method=self.name)


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        WorkbenchError: there is none.
    """
    for family, names in FAMILIES.items():
        if name in names:
            return Method(name, family, importlib.import_module(f"workbench.unlearn.{name}"))
    wanted = ", ".join(METHODS)
    raise WorkbenchError(f"no method {name!r}: wanted one of {wanted}, or a file of your own")


def method_from(file: Path | str) -> Method:
    """The method that a file of the user's holds; its code is run.

    Raises:
        WorkbenchError: no such file, or one without a function `unlearn`.
    """
    file = Path(file)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise WorkbenchError(f"{file}: no Python file there; wanted one with a function unlearn")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "unlearn", None)):
        raise WorkbenchError(
            f"{file}: holds no function unlearn(model, target, config, seed) that returns an Arm"
        )
    return Method(file.stem, "own", module)


METHODS: tuple[str, ...] = tuple(name for names in FAMILIES.values() for name in names)
"""Names of all methods."""
