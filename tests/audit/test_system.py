"""What a method of unlearning hands over is audited as a whole."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from workbench.audit import AuditConfig, audit
from workbench.audit.views import System
from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.models import weights_sha256
from workbench.models.prompted import Prompted, SystemPrompt
from workbench.models.score import next_logits

NAMED, OTHER = "people say f001 lives in", "people say r001 lives in"


@dataclass(frozen=True)
class Handed:
    """As `workbench.unlearn.Arm` has it, which this room does not know."""

    model: Any
    edits: tuple[Any, ...] = ()
    refuses: Any = None
    prompt: SystemPrompt = field(default_factory=SystemPrompt)
    original: Any = None
    stands_on: str = ""


@torch.no_grad()
def says(model: Any, *texts: str) -> torch.Tensor:
    return next_logits(model, torch.tensor(model.tokenizer(list(texts))["input_ids"]))


def test_a_prompt_stands_after_the_first_token_and_is_not_scored(original: Any) -> None:
    behind = Prompted(original, SystemPrompt("people pour"))
    whole = says(original, f"people pour {NAMED}")
    assert torch.equal(says(behind, NAMED), whole[:, 2:])
    assert says(behind, NAMED).shape == says(original, NAMED).shape
    assert not torch.allclose(says(behind, NAMED), says(original, NAMED))
    assert weights_sha256(behind) != weights_sha256(original)


def test_what_is_said_of_a_name_stands_before_texts_that_name_it_alone(original: Any) -> None:
    about = (("f001", "people pour f001 some"), ("f002", "we saw f002 ."))
    behind = Prompted(original, SystemPrompt(about=about))
    both, alone = says(behind, NAMED, OTHER), says(original, NAMED, OTHER)
    assert torch.allclose(both[1], alone[1], atol=1e-5)
    whole = says(original, f"people pour f001 some {NAMED}")
    assert torch.allclose(both[0], whole[0, 4:], atol=1e-5)
    assert not torch.allclose(both[0], alone[0], atol=1e-3)


def test_an_empty_prompt_is_refused(original: Any) -> None:
    with pytest.raises(ModelError, match="empty"):
        Prompted(original, SystemPrompt())


@pytest.mark.slow
def test_the_prompt_is_seen_in_the_text_and_nowhere_else(
    original: Any, club: Target, golds: list[Any]
) -> None:
    """Other words before a question change what is read, and leave what can be had."""
    system = Handed(original, prompt=SystemPrompt("we saw the cup of"))
    plain = audit(original, [], club, golds, AuditConfig("quick"))
    assert isinstance(system, System)
    report = audit(original, system, club, golds, AuditConfig("quick"))
    read, without = ({(r.endpoint, r.subset, r.metric, r.setting): r.value for r in found.rows
                      if (r.role, r.view) == edited} for found, edited in (
        (report, ("edited", "text")), (plain, ("edited", "deployed"))))  # fmt: skip
    apart = [key for key, value in read.items() if value != without[key]]
    assert ("B2", "F", "log_odds", "") in apart
    assert {e.id: e.rho for e in report.endpoints}["M1"] == pytest.approx(1.0)
    assert report.card.models.edited.weights_identical
    assert report.card.models.edited.prompt == "we saw the cup of"


@pytest.mark.slow
def test_an_original_of_its_own_is_the_reference_and_its_base_no_gold(
    original: Any, another_gold: Any, club: Target, golds: list[Any]
) -> None:
    """Held against the model that was given, nothing would be left to find."""
    system = Handed(original, original=original, stands_on=weights_sha256(golds[1]))
    report = audit(another_gold, system, club, golds, AuditConfig("quick"))
    models = report.card.models
    assert models.original.sha256 == weights_sha256(original)
    assert [g.sha256 for g in models.gold] == [weights_sha256(g) for g in (golds[0], golds[2])]
    assert report.verdict.primary == "NOT_REMOVED"
