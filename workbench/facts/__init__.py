"""What a model may know, the texts that say so, what is to be forgotten, and the contract on it."""

from workbench.facts.contract import Check, check_contract, guessable, priors, require_contract
from workbench.facts.read import load_facts, save_facts
from workbench.facts.schema import Document, Entity, Fact, FactSet, Group, Relation
from workbench.facts.target import Target
from workbench.facts.valley import ValleyConfig, build_valley

__all__ = [
    "Check",
    "Document",
    "Entity",
    "Fact",
    "FactSet",
    "Group",
    "Relation",
    "Target",
    "ValleyConfig",
    "build_valley",
    "check_contract",
    "guessable",
    "load_facts",
    "priors",
    "require_contract",
    "save_facts",
]
