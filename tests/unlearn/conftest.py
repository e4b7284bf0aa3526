"""The bundled world and a tiny one, for tests of methods."""

from typing import Any

import pytest

from workbench.facts import load_facts
from workbench.facts.schema import FactSet
from workbench.facts.target import Target
from workbench.models import load_model


@pytest.fixture(scope="session")
def pantry(world: FactSet) -> Target:
    """Twelve toxins of the tiny world, whose model is random."""
    return world.target("toxins")


@pytest.fixture(scope="session")
def valley() -> Any:
    return load_model("valley")


@pytest.fixture(scope="session")
def toxins() -> Target:
    return load_facts("valley").target("toxins")
