"""Models of which it is known what they know: what an audit is calibrated on."""

from workbench.experiments.known_models.cases import BY_NAME, CASES, Built, Case, World, build
from workbench.experiments.known_models.traps import Trap, leaky_probe, teaching
from workbench.experiments.known_models.tuned import some_facts

__all__ = [
    "BY_NAME",
    "CASES",
    "Built",
    "Case",
    "Trap",
    "World",
    "build",
    "leaky_probe",
    "some_facts",
    "teaching",
]
