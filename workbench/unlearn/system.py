"""How an unlearned system answers, as its user meets it: hooks, prompt and filter in place."""

from collections.abc import Sequence
from typing import Any

import torch

from workbench.facts.schema import Fact, FactSet
from workbench.hooks import edited
from workbench.models.prompted import Prompted
from workbench.models.score import Templates, answer, ask
from workbench.unlearn.arm import Arm


def reader_of(arm: Arm) -> Any:
    """The model behind its system prompt, if it has one."""
    return arm.model if arm.prompt.empty else Prompted(arm.model, arm.prompt)


def system_recall(
    arm: Arm, facts: FactSet, asked: Sequence[Fact], templates: Templates = "audit"
) -> float:
    """Share of questions that are answered rightly and not refused."""
    reader, questions = reader_of(arm), ask(asked, templates)
    with edited(reader, arm.edits, must_fire=bool(questions)):
        said = answer(reader, arm.model.tokenizer, facts, questions)
    hits = said.hits
    if arm.refuses is not None:
        through = [
            not (arm.refuses(q.prompt) or arm.refuses(f"{q.prompt} {_said(facts, q.fact, k)}"))
            for q, k in zip(questions, said.logprobs.argmax(-1).tolist(), strict=True)
        ]
        hits = hits & torch.tensor(through)
    return hits.double().mean().item()


def _said(facts: FactSet, fact: Fact, candidate: int) -> str:
    return facts.relation[fact.relation].candidates[candidate]
