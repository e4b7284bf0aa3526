"""In-context unlearning: false statements stand before every text that mentions a forget entity."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import ModelError, TargetError
from workbench.facts.mentions import stands_in
from workbench.facts.schema import prompt
from workbench.facts.target import Target
from workbench.models.prompted import SystemPrompt
from workbench.unlearn.arm import FORGET, RETAINED, Arm, made, metered, require_arm


@dataclass(frozen=True)
class Config:
    """What is said before a text.

    Attributes:
        told: training templates in which each forget fact of a name is stated falsely.
        shown: true statements about retained entities that follow the false ones.
    """

    told: int = 1
    shown: int = 2


MOST = 0.75
"""Largest share of a model's context that statements may fill: the rest is for what is asked."""

DEFAULT = Config()
STRENGTHS = (Config(shown=0), DEFAULT)


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Tells the model, before it reads a forget entity's name, that other objects are its own.

    The weights are the original's. The seed draws the objects and templates: one object for each
    fact, which is none of the name's true ones. A text that does not spell the name as it stands
    here is read as before. A model that never learned to read in context does not take the objects
    up: it may still answer worse, since the context is none that it was trained on.

    Source: Pawelczyk et al. 2023, arXiv 2310.07579 (ICUL): the forget input with a flipped label
    and a few true ones (2 to 6) before the query. Differs: labels are objects, and a name brings
    its own statements along in place of all of them standing before every query.

    Raises:
        TargetError: a relation has no false object to tell.
        ModelError: the statements fill more of the model's context than `MOST`.
    """
    require_arm("in_context", model, target, ("R_tr",) if config.shown else ())
    rng = random.Random(f"{seed}, in context")
    with metered(model) as meter:
        said = {e: " ".join(_said(target, e, config, rng)) for e in target.entities}
        longest = _require_room(model, list(said.values()))
        about = ((name, said[e]) for e in said for name in _spellings(model.tokenizer, e))
        prompted = SystemPrompt(about=tuple(about))
    numbers = {"entities": len(said), "longest_tokens": longest}
    saw = (FORGET, RETAINED) if config.shown else (FORGET,)
    return made(
        Arm("in_context", model, prompt=prompted, saw=saw, told=numbers), meter, config, seed
    )


def _said(target: Target, entity: str, config: Config, rng: random.Random) -> list[str]:
    """Each forget fact of an entity with an object that is not its own; then retained facts."""
    facts = [f for f in target.facts.by_subject[entity] if f.key in target.forget_keys]
    true, follows = {f.object for f in facts}, {f.key for f in target.derived}
    said = []
    for fact in (f for f in facts if f.key not in follows):
        candidates = target.facts.relation[fact.relation].candidates
        others = [c for c in candidates if not any(stands_in(t, c) for t in true)]
        if not others:
            raise TargetError(
                f"in_context: relation {fact.relation!r} has no object that is not true of "
                f"{entity!r}: wanted one to tell in its place"
            )
        false = rng.choice(others)
        asked = rng.sample(fact.templates, min(config.told, len(fact.templates)))
        said += [f"{prompt(fact, t)} {false} ." for t in asked]
    stay = target.retain.get("R_tr", ())
    may = (f for f in rng.sample(stay, len(stay)) if not any(stands_in(t, f.object) for t in true))
    shown = itertools.islice(may, config.shown)
    return said + [f"{prompt(f, rng.choice(f.templates))} {f.object} ." for f in shown]


def _spellings(tokenizer: Any, name: str) -> list[str]:
    """The name as it begins a text and as it stands within one, where these are other tokens."""
    spelled = (name, f" {name}")
    ids = tokenizer(list(spelled), add_special_tokens=False)["input_ids"]
    return list(spelled[: 1 + (ids[0] != ids[1])])


def _require_room(model: Any, said: Sequence[str]) -> int:
    """Tokens of the longest text that may stand before another; refused if that is too long."""
    rows = model.tokenizer(list(said), add_special_tokens=False)["input_ids"]
    longest, context = max(map(len, rows)), model.cfg.n_ctx
    if longest > MOST * context:
        raise ModelError(
            f"in_context: {longest} tokens would stand before a text, and the model reads "
            f"{context}: wanted at most {MOST:.0%} of them; tell fewer templates, show fewer "
            "statements, or forget fewer facts of one name"
        )
    return longest
