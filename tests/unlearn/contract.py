"""What every method of unlearning keeps to; each family's tests ask it of each of its methods."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workbench.facts.target import Target
from workbench.hooks import edited
from workbench.models import weights_sha256
from workbench.models.score import next_logits
from workbench.unlearn import Arm, load_arm, save_arm, system_recall
from workbench.unlearn.system import reader_of
from workbench.unlearn.training import HELD_OUT

Make = Callable[[Any, Target, int], Arm]
"""A method at a small strength: of the model, the target and the seed."""


def says(arm: Arm, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the system as its user meets it."""
    reader = reader_of(arm)
    with torch.no_grad(), edited(reader, arm.edits):
        return next_logits(reader, tokens)


def check_contract(make: Make, model: Any, target: Target, folder: Path) -> Arm:
    """The same seed gives the same system; the caller's model stays; what is saved comes back.

    Returns:
        The arm of seed 0.
    """
    before = weights_sha256(model)
    required = [p.requires_grad for p in model.parameters()]
    random_state = torch.get_rng_state()
    arm, again = make(model, target, 0), make(model, target, 0)
    assert weights_sha256(model) == before, "the caller's model was changed"
    assert [p.requires_grad for p in model.parameters()] == required
    assert torch.equal(torch.get_rng_state(), random_state), "the global random state was moved"
    tokens = torch.tensor(model.tokenizer([f"{f.templates[0]}".replace("{}", f.subject)
                                           for f in target.forget[:1]])["input_ids"])  # fmt: skip
    assert torch.equal(says(arm, tokens), says(again, tokens)), "the same seed gave another system"
    assert weights_sha256(arm.model) == weights_sha256(again.model)
    assert arm.cost.seconds >= 0
    assert arm.claim in ("exact", "certified for linear readers", "statistical", "none")
    save_arm(arm, model, folder / "arm")
    back = load_arm(folder / "arm", model)
    assert torch.equal(says(back, tokens), says(arm, tokens)), "another system came back"
    for name in ("method", "claim", "saw", "cost", "seed", "stands_on", "prompt"):
        assert getattr(back, name) == getattr(arm, name), name
    return arm


def check_keeps(
    arm: Arm, original: Any, target: Target, recall: float, perplexity: float, forget: float
) -> dict[str, float]:
    """What is to stay stays to a stated degree, and something was forgotten or refused.

    Args:
        recall: least share of R_va and of unrelated facts that is still answered.
        perplexity: largest ratio of perplexity on texts that the method was not shown.
        forget: largest recall of the S fold.

    Returns:
        What was found.
    """
    facts, untouched = target.facts, Arm("no_change", original)
    others = [f for f in target.neighbours["U"] if f.stated][::6]
    found = {
        "forget": system_recall(arm, facts, target.fold("S")),
        "retained": system_recall(arm, facts, target.retain["R_va"]),
        "unrelated": system_recall(arm, facts, others),
        "perplexity": math.exp(held_out_nats(arm, target) - held_out_nats(untouched, target)),
    }
    assert found["forget"] <= forget, found
    assert min(found["retained"], found["unrelated"]) >= recall, found
    assert found["perplexity"] <= perplexity, found
    return found


def held_out_nats(arm: Arm, target: Target) -> float:
    """Cross-entropy per token of texts that state facts of R_va and R_te alone."""
    keys = {f.key for fold in HELD_OUT for f in target.retain[fold]}
    texts = [d.text for d in target.facts.corpus if d.states and set(d.states) <= keys][::11]
    rows = arm.model.tokenizer(texts)["input_ids"]
    total, count = 0.0, 0
    reader = reader_of(arm)
    with torch.no_grad(), edited(reader, arm.edits):
        for row in rows:
            tokens = torch.tensor([row])
            logp = next_logits(reader, tokens)[:, :-1].float().log_softmax(-1)
            total -= logp.gather(-1, tokens[:, 1:, None]).sum().item()
            count += tokens.numel() - 1
    return total / count
