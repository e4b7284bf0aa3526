"""W1, relearning: fine-tune on half of the forget entities, score the others."""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.audit.questions import centred_scores, put
from workbench.audit.statistics import Key, Scores
from workbench.facts.schema import statement
from workbench.facts.target import Target
from workbench.hooks import Intervention, edited
from workbench.models.score import device_of
from workbench.models.train import lm_loss, pad_rows


@dataclass(frozen=True)
class RelearnConfig:
    """The attack.

    Attributes:
        steps: optimiser steps at which V is scored, the first one 0.
        replay: share of each batch that states retained facts, so that what T does not teach is not
            overwritten.
    """

    lr: float = 3e-4
    steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64)
    batch_size: int = 32
    replay: float = 0.5
    seed: int = 0


def relearn(
    model: Any,
    edits: Sequence[Intervention],
    target: Target,
    config: RelearnConfig | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> dict[Key, Scores]:
    """Fine-tunes a copy on training templates of the T fold, through the live edits; scores V.

    No V fact, and no label of one, reaches the attack; V is asked on audit-only templates. The
    caller's model is not changed. Source: retraining on T, 2410.08827. Differs: AdamW, scores at
    every doubling of the steps.

    Returns:
        Centred hits on V and hits on R_te by step (`x`), and on V the area under the curve over
        log2(1 + steps), scaled to 0..1 (AURC).
    """
    config = config or RelearnConfig()
    attacked = copy.deepcopy(model).train()
    for parameter in attacked.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(attacked.parameters(), lr=config.lr, weight_decay=0.0)
    batches = _batches(model.tokenizer, target, config)
    found: dict[Key, Scores] = {}
    for step in range(max(config.steps) + 1):
        if step in config.steps:
            attacked.eval()
            for name, facts in (("V", target.fold("V")), ("R_te", target.retain["R_te"])):
                if facts:
                    scores = centred_scores(put(attacked, edits, target.facts, facts, "audit"))
                    found[Key("relearn", name, "centred", step)] = scores
            attacked.train()
        if step < max(config.steps):
            _step(attacked, edits, optimizer, next(batches), model.tokenizer.pad_token_id)
        progress(step)
    found[Key("relearn_area", "V", "centred")] = _area(
        [found[Key("relearn", "V", "centred", s)] for s in config.steps], config
    )
    return found


def _area(curve: Sequence[Scores], config: RelearnConfig) -> Scores:
    x = np.log2(1 + np.array(config.steps, dtype=float))
    values = np.trapezoid(np.stack([s.values for s in curve]), x, axis=0) / x[-1]
    return Scores(values, curve[0].entities)


def _step(
    model: Any, edits: Sequence[Intervention], optimizer: Any, tokens: torch.Tensor, pad: int
) -> None:
    tokens = tokens.to(device_of(model))
    with edited(model, edits):
        loss = lm_loss(model(tokens), tokens, pad)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _batches(tokenizer: Any, target: Target, config: RelearnConfig):
    rng = random.Random(config.seed)
    pools = [
        _encoded(tokenizer, [statement(f, t) for f in facts for t in f.templates])
        for facts in (target.fold("T"), target.retain["R_tr"])
    ]
    n_replay = round(config.replay * config.batch_size) if pools[1] else 0
    while True:
        chosen = rng.choices(pools[0], k=config.batch_size - n_replay) + rng.choices(
            pools[1] or pools[0], k=n_replay
        )
        yield pad_rows(chosen, tokenizer.pad_token_id)


def _encoded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return (
        [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]] if texts else []
    )
