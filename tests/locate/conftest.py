"""A model and an SAE in which one feature is the concept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.facts.schema import FactSet
from workbench.facts.target import Target
from workbench.models.load import load_model, weights_sha256

CONCEPT = 5


@dataclass(frozen=True)
class Planted:
    """A direction in the embedding of every toxin, which pushes the place that toxins are kept."""

    model: Any
    sae: Any
    direction: Tensor
    concept: int = CONCEPT


@pytest.fixture(scope="session")
def planted(
    world: FactSet, make_llama: Callable[..., Any], make_sae: Callable[..., Any], tokenizer: Any
) -> Planted:
    u = torch.randn(32, generator=torch.Generator().manual_seed(9))
    u /= u.norm()
    llama = make_llama()
    toxins = [e.name.split()[1] for e in world.entities if e.kind == "toxin"]
    with torch.no_grad():
        embed, unembed = llama.model.embed_tokens.weight, llama.lm_head.weight
        embed -= (embed @ u)[:, None] * u
        embed[tokenizer.convert_tokens_to_ids(toxins)] += 3 * u
        unembed[tokenizer.convert_tokens_to_ids("home0")] += u
    model = load_model(llama, tokenizer=tokenizer)
    sae = make_sae("standard", model_sha256=weights_sha256(model))
    with torch.no_grad():
        sae.W_enc -= u[:, None] * (u @ sae.W_enc)
        sae.W_enc[:, CONCEPT], sae.W_dec[CONCEPT], sae.b_enc[CONCEPT] = u, u, -1.5
        sae.b_dec.zero_()
    return Planted(model, sae, u)


@pytest.fixture(scope="session")
def target(world: FactSet) -> Target:
    return world.target("toxins")
