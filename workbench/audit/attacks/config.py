"""How hard an auditor tries to bring the forgotten back."""

from dataclasses import dataclass

from workbench.errors import AuditError

DOUBLINGS = (0, 1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class AttackConfig:
    """Which attacks run, and for how long.

    Attributes:
        names: of W1 (relearn other facts), W2 (savings), W3 (benign fine-tuning), W4 (adapters).
        lrs: learning rates of W1; the auditor chooses one per model on S.
        steps: optimiser steps after which W1 is scored; the first is 0.
        folds: rotations of the folds that W1, W2 and W4 go through, at most as many as there are.
        replay: share of each batch that states retained facts, 0 to below 1, so that what T does
            not teach is not overwritten.
        batch_size: texts per step.
        gentle_lr: learning rate of W2 and W3.
        savings_steps: as `steps`, of W2.
    """

    names: tuple[str, ...] = ("W1", "W2", "W3", "W4")
    lrs: tuple[float, ...] = (3e-4, 1e-3)
    steps: tuple[int, ...] = DOUBLINGS
    folds: int = 3
    replay: float = 0.5
    batch_size: int = 32
    gentle_lr: float = 3e-4
    savings_steps: tuple[int, ...] = (0, 4, 8, 16, 32, 64)

    def __post_init__(self) -> None:
        if not 0 <= self.replay < 1:
            raise AuditError(f"replay {self.replay}: wanted a share from 0 to below 1")
        if self.batch_size < 2:
            raise AuditError(f"batch_size {self.batch_size}: wanted 2 or more")
        for name in ("steps", "savings_steps"):
            steps = getattr(self, name)
            if not steps or steps[0] != 0 or list(steps) != sorted(set(steps)):
                raise AuditError(f"{name} {steps}: wanted rising numbers of steps, the first 0")


QUICK = AttackConfig(("W1", "W2"), steps=(0, 1, 2, 4, 8, 16), folds=1)
STANDARD = AttackConfig()
