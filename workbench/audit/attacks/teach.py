"""Attacks that hand over the answer: what the injection index has to catch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from workbench.audit.attacks.config import AttackConfig
from workbench.audit.attacks.fitting import EMBEDDINGS, UNASKED
from workbench.audit.attacks.relearn import course
from workbench.audit.attacks.training import finetuned, score
from workbench.audit.questions.scorer import centred, hits, put, scored
from workbench.audit.rotation import Folds, facts_of, rotations
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.facts.schema import Fact, statement
from workbench.facts.target import Target
from workbench.hooks import Intervention, Site, edited
from workbench.models.score import Question, ask, device_of, next_logits, object_tokens
from workbench.models.train import pad_rows

STEPS = (0, 32, 96)
SOFT_FACTS, SOFT_STEPS, SOFT_LR = 40, 30, 0.1


@dataclass(frozen=True)
class SoftPrompt:
    """Adds a vector to the first token's embedding: to all texts one, or to each its own."""

    vectors: Float[Tensor, "prompt d_model"]
    site: Site = EMBEDDINGS

    def __call__(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        first = resid[:, :1] + self.vectors[:, None].to(resid.dtype)
        return torch.cat([first, resid[:, 1:]], dim=1)


def teaching_attack(target: Target, seed: int = 0) -> dict[str, Measure]:
    """Three attacks that give V's objects away, each scored on V without and with it.

    They lift golds to where the original stands, so none is evidence about an edited model. An
    audit that counts one of them is broken. They are `V in T`, relearning that states the scored
    facts; `hint`, a prompt that states the fact first; and `soft prompt`, a vector per
    fact at the first token, optimised toward the object.
    """
    turn = rotations(target)[0]
    return {
        f"teach: {name}": partial(
            attack, target=target, turn=turn, label=Key("teach", "V", "centred", name, 0), seed=seed
        )
        for name, attack in (("V in T", _tell), ("hint", _hint), ("soft prompt", _soften))
    }


def _tell(view: View, target: Target, turn: Folds, label: Key, seed: int) -> Found:
    told = {**turn, "T": turn["V"]}
    lessons = course(target, told, AttackConfig(replay=0.25), 1e-3, f"{seed}, tell")
    asked = {"V": facts_of(target, turn["V"])}
    found: Found = {}
    for step, attacked in finetuned(view, lessons, STEPS):
        found |= score(attacked, target.facts, asked, label._replace(x=step))
    return found


def _hint(view: View, target: Target, turn: Folds, label: Key, seed: int) -> Found:
    asked = facts_of(target, turn["V"])
    hinted = [
        replace(f, audit_templates=tuple(f"{_said(f)} {t}" for t in f.audit_templates))
        for f in asked
    ]
    before = score(view, target.facts, {"V": asked}, label)
    return before | score(view, target.facts, {"V": hinted}, label._replace(x=1))


def _said(fact: Fact) -> str:
    return statement(fact, fact.templates[0]) if fact.templates else fact.object


def _soften(view: View, target: Target, turn: Folds, label: Key, seed: int) -> Found:
    asked = [f for f in facts_of(target, turn["V"]) if f.audit_templates][:SOFT_FACTS]
    questions = ask(asked, "audit")
    before = put(view.model, view.edits, target.facts, questions).answers
    vectors = _optimised(view, questions, len(asked))
    parts = []
    for fact, vector in zip(asked, vectors, strict=True):
        edits: Sequence[Intervention] = [SoftPrompt(vector[None]), *view.edits]
        parts.append(put(view.model, edits, target.facts, ask([fact], "audit")).answers.logprobs)
    width = before.logprobs.shape[1]
    padded = [pad(part, (0, width - part.shape[1]), value=-torch.inf) for part in parts]
    after = replace(before, logprobs=torch.cat(padded))
    return {
        label._replace(x=x): scored(answers, hits(centred(answers)))
        for x, answers in ((0, before), (SOFT_STEPS, after))
    }


def _optimised(
    view: View, questions: Sequence[Question], n_facts: int
) -> Float[Tensor, "fact d_model"]:
    """One vector per fact, fitted to the object's tokens after all of its prompts."""
    model, device = view.model, device_of(view.model)
    keys = list(dict.fromkeys(q.fact.key for q in questions))
    of = torch.tensor([keys.index(q.fact.key) for q in questions], device=device)
    tokens, labels = (t.to(device) for t in _answered(model.tokenizer, questions))
    vectors = torch.zeros(n_facts, model.cfg.d_model, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([vectors], lr=SOFT_LR)
    for _ in range(SOFT_STEPS):
        with edited(model, [SoftPrompt(vectors[of]), *view.edits]):
            logits = next_logits(model, tokens)[:, :-1].flatten(0, 1).float()
        loss = cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=UNASKED)
        optimizer.zero_grad()
        loss.backward(inputs=[vectors])
        optimizer.step()
    return vectors.detach()


def _answered(
    tokenizer: Any, questions: Sequence[Question]
) -> tuple[Int[Tensor, "question pos"], Int[Tensor, "question pos"]]:
    """Each question with its object, and the object's tokens alone as labels."""
    objects = object_tokens(tokenizer, [q.fact.object for q in questions])
    prompts = tokenizer([q.prompt for q in questions])["input_ids"]
    both = list(zip(prompts, objects, strict=True))
    rows = [[*prompt, *found] for prompt, found in both]
    labels = [[*([UNASKED] * len(prompt)), *found] for prompt, found in both]
    return pad_rows(rows, 0), pad_rows(labels, UNASKED)
