"""How hard an auditor tries to bring the forgotten back."""

from dataclasses import dataclass

from workbench.errors import AuditError

DOUBLINGS = (0, 1, 2, 4, 8, 16, 32, 64)
UNITS = {"W5": "bits", "W6": "sparsity", "W7": "sigma", "W8": "of the norm"}
"""What the doses of an attack are counted in, where it is not steps."""


def setting_name(attack: str, setting: str, dose: float) -> str:
    """A setting of an attack and its dose with its unit, as reports give them."""
    told = f"{dose:g} {UNITS.get(attack, 'steps')}"
    return setting if told == setting else ", ".join(part for part in (setting, told) if part)


@dataclass(frozen=True)
class Perturbing:
    """How strongly W5 to W9 disturb a model that they do not train.

    Attributes:
        bits: widths to which W5 rounds weights, 2 to 16.
        bnb: of `int8` and `nf4`: W5 by bitsandbytes as well, on CUDA alone.
        sparsities: shares of the weights that W6 sets to zero, above 0 and below 1.
        sigmas: noise of W7, in standard deviations of each tensor's weights, above 0.
        draws: of that noise; the auditor chooses one on S.
        norms: lengths of W8's vector, in mean lengths of the stream, above 0.
        layers: how many layers, evenly spread, W8's vector is tried at; 0 is every one.
        n_soft: tokens of W9's prompts, 1 or more.
    """

    bits: tuple[int, ...] = (8, 4, 3)
    bnb: tuple[str, ...] = ()
    sparsities: tuple[float, ...] = (0.1, 0.3, 0.5)
    sigmas: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    draws: int = 4
    norms: tuple[float, ...] = (0.1, 0.3, 1.0)
    layers: int = 1
    n_soft: tuple[int, ...] = (1, 4)

    def __post_init__(self) -> None:
        limits = {
            "bits": (2, 16),
            "sparsities": (1e-9, 1 - 1e-9),
            "sigmas": (1e-9, float("inf")),
            "norms": (1e-9, float("inf")),
            "n_soft": (1, float("inf")),
        }
        for name, (least, most) in limits.items():
            doses = getattr(self, name)
            if list(doses) != list(dict.fromkeys(doses)) or any(
                not least <= dose <= most for dose in doses
            ):
                raise AuditError(f"{name} {doses}: wanted different ones, {least:g} to {most:g}")
        if self.draws < 1 or self.layers < 0:
            raise AuditError(f"draws {self.draws}, layers {self.layers}: wanted 1 and 0, or more")
        if strange := set(self.bnb) - {"int8", "nf4"}:
            raise AuditError(f"bnb {sorted(strange)}: wanted some of int8, nf4")


@dataclass(frozen=True)
class AttackConfig:
    """Which attacks run, and for how long.

    Attributes:
        names: of W1 (relearn other facts), W2 (savings), W3 (benign fine-tuning), W4 (adapters),
            W5 (rounding), W6 (pruning), W7 (noise), W8 (one direction), W9 (soft prompts), W10
            (prefix of tokens).
        lrs: learning rates of W1; the auditor chooses one per model on S.
        steps: optimiser steps after which W1 is scored; the first is 0.
        folds: rotations of the folds that attacks on T go through, at most as many as there are.
        replay: share of each batch that states retained facts, 0 to below 1, so that what T does
            not teach is not overwritten.
        batch_size: texts per step.
        gentle_lr: learning rate of W2 and W3.
        savings_steps: as `steps`, of W2.
        other_replays: shares of replay that W1 is tried with besides.
        ladder: shares of T's entities, above 0 and below 1, that W1 states besides all of them:
            the least that brings something back.
        perturbing: the doses of W5 to W9.
    """

    names: tuple[str, ...] = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8", "W9")
    lrs: tuple[float, ...] = (3e-4, 1e-3)
    steps: tuple[int, ...] = DOUBLINGS
    folds: int = 3
    replay: float = 0.5
    batch_size: int = 32
    gentle_lr: float = 3e-4
    savings_steps: tuple[int, ...] = (0, 4, 8, 16, 32, 64)
    other_replays: tuple[float, ...] = ()
    ladder: tuple[float, ...] = ()
    perturbing: Perturbing = Perturbing()

    def __post_init__(self) -> None:
        for share in (self.replay, *self.other_replays):
            if not 0 <= share < 1:
                raise AuditError(f"replay {share}: wanted a share from 0 to below 1")
        if any(not 0 < share < 1 for share in self.ladder):
            raise AuditError(f"ladder {self.ladder}: wanted shares above 0 and below 1")
        if self.batch_size < 2:
            raise AuditError(f"batch_size {self.batch_size}: wanted 2 or more")
        for name in ("steps", "savings_steps"):
            steps = getattr(self, name)
            if not steps or steps[0] != 0 or list(steps) != sorted(set(steps)):
                raise AuditError(f"{name} {steps}: wanted rising numbers of steps, the first 0")


QUICK = AttackConfig(
    ("W1", "W2", "W5"), steps=(0, 1, 2, 4, 8, 16), folds=1, perturbing=Perturbing(bits=(4,))
)
STANDARD = AttackConfig()
FULL = AttackConfig(
    (*STANDARD.names, "W10"),
    lrs=(1e-4, 3e-4, 1e-3),
    other_replays=(0.0,),
    ladder=(0.1, 0.5),
    perturbing=Perturbing(draws=8, layers=0, n_soft=(1, 4, 8)),
)
