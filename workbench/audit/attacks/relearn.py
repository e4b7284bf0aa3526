"""W1 and W4: state half of the forget entities' facts, score the others."""

from dataclasses import replace
from functools import partial

from workbench.audit.attacks.config import AttackConfig
from workbench.audit.attacks.training import Course, finetuned, score, statements
from workbench.audit.rotation import Folds, facts_of, rotations
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.facts.target import Target

ADAPTER_STEPS = (0, 4, 16)
ADAPTER_LR = 1e-3


def relearn_jobs(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """W1, one job per fold and setting: all weights are fine-tuned on T and replayed facts.

    Scored are V, S and, at the first and the last step, R_te. A setting is a learning rate, where
    asked for with another share of replay, or with a part of T (the ladder of doses). Source:
    retraining on T, 2410.08827. Differs: AdamW, statements in place of multiple choice, scores at
    every doubling of the steps.
    """
    return {
        f"W1 fold {fold} {setting}": partial(
            relearn,
            target=target,
            turn=turn,
            course=course(
                target,
                part_of(turn, share),
                replace(config, replay=replay),
                lr,
                f"{seed}, fold {fold}",
            ),
            steps=config.steps,
            label=Key("W1", "", "centred", setting, fold),
        )
        for fold, turn in turns(target, config)
        for setting, (lr, replay, share) in settings(config).items()
    }


def settings(config: AttackConfig) -> dict[str, tuple[float, float, float]]:
    """W1's settings: learning rate, share of replay, and share of T's entities that are stated."""
    found = {f"lr {lr:g}": (lr, config.replay, 1.0) for lr in config.lrs}
    for lr in config.lrs:
        for replay in config.other_replays:
            found[f"lr {lr:g}, replay {replay:g}"] = (lr, replay, 1.0)
        for share in config.ladder:
            found[f"lr {lr:g}, {share:.0%} of T"] = (lr, config.replay, share)
    return found


def part_of(turn: Folds, share: float) -> Folds:
    """The folds with only the first of T's entities, at least one; larger shares hold smaller."""
    count = max(1, round(share * len(turn["T"])))
    return {**turn, "T": turn["T"][:count]}


def adapter_jobs(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """W4, one job per fold: W1's texts for 16 steps, into adapters of low rank beside the weights.

    Source: tampering within 16 steps, 2502.05209. Differs: rank 4, alpha 8, learning rate 1e-3.
    """
    return {
        f"W4 fold {fold}": partial(
            relearn,
            target=target,
            turn=turn,
            course=course(target, turn, config, ADAPTER_LR, f"{seed}, fold {fold}", adapters=True),
            steps=ADAPTER_STEPS,
            label=Key("W4", "", "centred", "lora", fold),
            utility_at=ADAPTER_STEPS,
        )
        for fold, turn in turns(target, config)
    }


def course(
    target: Target, turn: Folds, config: AttackConfig, lr: float, order: str, adapters: bool = False
) -> Course:
    """Statements of T's facts and of replayed ones; no fact of S or V, nor a label of one."""
    stated = statements(facts_of(target, turn["T"]))
    replayed = statements(target.retain["R_tr"])
    n_replay = round(config.replay * config.batch_size) if replayed else 0
    counts = (config.batch_size - n_replay, n_replay)
    return Course((stated, replayed), counts, lr, order, adapters)


def relearn(
    view: View,
    target: Target,
    turn: Folds,
    course: Course,
    steps: tuple[int, ...],
    label: Key,
    utility_at: tuple[int, ...] | None = None,
) -> Found:
    """Centred hits on V and S after each of `steps` on the course, and on R_te at some of them.

    Args:
        utility_at: steps at which R_te is scored; by default the first and the last.
    """
    scored = {name: facts_of(target, turn[name]) for name in ("V", "S")}
    stayed = {"R_te": target.retain["R_te"]}
    ends = (steps[0], steps[-1]) if utility_at is None else utility_at
    found: Found = {}
    for step, attacked in finetuned(view, course, steps):
        asked = {**scored, **(stayed if step in ends else {})}
        found |= score(attacked, target.facts, asked, label._replace(x=step))
    return found


def turns(target: Target, config: AttackConfig) -> list[tuple[int, Folds]]:
    """The rotations, numbered, in which there is something to state and something to score."""
    turns = enumerate(rotations(target)[: config.folds])
    return [(fold, turn) for fold, turn in turns if turn["T"] and turn["V"]]
