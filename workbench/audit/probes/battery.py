"""P1 to P8: what readers of the residual stream can tell of facts they were not fitted on."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.probes.code import (
    baseline,
    conditional_bits,
    online_bits,
    uniform_bits,
)
from workbench.audit.probes.labels import Labels
from workbench.audit.probes.linear import Frame, Lesson, Rows, fitted, tuned
from workbench.audit.probes.nets import attention_logits, mlp_logits
from workbench.audit.probes.rows import Place, depths, mean_rows, places, sequence_rows
from workbench.audit.probes.study import Frozen, Study
from workbench.audit.rotation import facts_of, rotations
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, Measure, View
from workbench.errors import AuditError
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.models.score import Templates

KINDS = ("P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8")
DRAWS = 5
"""Random answers that each control task is repeated with."""


def probes(
    target: Target,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    original: View | None = None,
) -> dict[str, Measure]:
    """The probes of the battery as one job, which reads the model once.

    Features are the residual stream after each block and before the first, at the last token of the
    subject and of the prompt, averaged over templates and standardised on R_tr: training templates
    to fit, audit-only ones to score. Every fact that is scored is about an entity that the reader
    was not fitted on, and no reader but P2's is given the object of a forget fact; P2's are given
    those of T, and S to choose their penalty.

    P1 transfer: multinomial ridge regression fitted on R_tr, penalty chosen on R_va. P2 within
    forget: the same on R_tr and T, or on T, for each turn of the folds. P3: an MLP; P4: attention
    over all tokens with one learned query; both fitted on R_tr. P5: P1 as fitted on the original,
    unchanged; evidence only where it is above the prior, since any turn of the basis blinds it. P6:
    P1 on random answers, which must sit at the prior on entities that were not fitted. P7: bits
    that an online code of the forget facts saves (`online_bits`), under P1's penalties. P8: bits
    that the stream adds to the name and to what is no secret about it (`conditional_bits`).

    Args:
        original: whose readers P5 carries over, on a model that no other thread has hooks on;
            without it there is no P5.

    Raises:
        AuditError: an unknown kind, or a target without retained facts to fit on.

    Source: linear probing of entities after Allen-Zhu & Li 2023, arXiv 2309.14316; MLP probes and
    control tasks: Hewitt & Liang 2019, arXiv 1909.03368. Differs: entities that are scored are not
    fitted, and control accuracy on them is a test for leaks instead of a term of selectivity.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise AuditError(f"probes {', '.join(unknown)}: wanted some of {', '.join(KINDS)}")
    if not target.retain["R_tr"]:
        raise AuditError(
            f"target {target.name!r} has no retained facts of its relations (R_tr is empty): "
            "probes are fitted on other entities, so choose a target that leaves some"
        )
    frozen = Frozen(target, original) if original is not None else None

    def measure(view: View) -> Found:
        study = Study(view, target, within="P2" in kinds)
        found: Found = {}
        for kind in KINDS:
            if kind in kinds:
                found |= _p5(study, frozen) if kind == "P5" else _MEASURES[kind](study, seed)
        return found

    return {f"probes {' '.join(k for k in KINDS if k in kinds)} seed {seed}": measure}


def template_split_probe(view: View, target: Target) -> Found:
    """The trap: a probe fitted on the very entities it is scored on, in other templates.

    It reads the random vectors of names off a model that knows nothing, far above the prior. An
    audit that takes this for knowledge is void.
    """
    labels, forget = Labels.of(target), target.forget
    train, audit = (mean_rows(view, forget, templates) for templates in ("train", "audit"))
    frame = Frame.of(train)
    readers = fitted(labels, Lesson.of(labels, frame(train), forget), torch.ones(len(train)))
    hits = readers.hits(Lesson.of(labels, frame(audit), forget))
    return _found(Key("P6", "F", "leak"), places(view.model), hits, forget)


def _p1(study: Study, _seed: int) -> Found:
    found: Found = {}
    for name in ("F", "R_va", "R_te"):
        lesson = study.lesson(study.frame, name, "audit")
        hits = study.transfer.hits(lesson)
        found |= _found(Key("P1", name, "hit"), study.places, hits, study.facts(name))
    return found | _bits(study)


def _bits(study: Study) -> Found:
    """Information about each fact: the prior's entropy less the bits that the answer still costs.

    Below zero where the reader is surer of wrong answers than the prior is.
    """
    lesson, forget = study.lesson(study.frame, "F", "audit"), study.target.forget
    logprobs = study.transfer.logprobs(lesson)
    right = logprobs.gather(-1, lesson.answers.expand(len(logprobs), -1)[..., None])[..., 0]
    prior = study.labels.entropy_bits(study.facts("R_tr"))[study.labels.relation_of(forget)]
    return _found(Key("P1", "F", "bits"), study.places, prior + right / np.log(2), forget)


def _p2(study: Study, _seed: int) -> Found:
    """On R_tr and T under P1's penalties, which R_va chose; on T alone, where S chooses."""
    forget, labels, frame = study.target.forget, study.labels, study.frame
    retained = frame(study.rows("R_tr", "train"))
    taught, audit = (frame(study.rows("F", templates)) for templates in ("train", "audit"))
    found: Found = {}
    for fold, names in enumerate(rotations(study.target)):
        facts = {name: facts_of(study.target, names[name]) for name in "TSV"}
        at = {name: _positions(forget, chosen) for name, chosen in facts.items()}
        if not facts["T"]:
            continue
        asked = {name: Lesson.of(labels, audit[:, at[name]], facts[name]) for name in "SV"}
        alone = Lesson.of(labels, taught[:, at["T"]], facts["T"])
        both = Lesson.of(
            labels, torch.cat([retained, alone.x], 1), (*study.facts("R_tr"), *facts["T"])
        )
        transfer = study.transfer
        settings = {
            "both": fitted(labels, both, transfer.ridge, transfer.weights),
            "forget": tuned(labels, alone, asked["S"]),
        }
        for setting, readers in settings.items():
            for name in "SV":
                found |= _found(
                    Key("P2", name, "hit", setting, fold),
                    study.places,
                    readers.hits(asked[name]),
                    facts[name],
                )
    return found


def _p3(study: Study, seed: int) -> Found:
    def standard(name: str, templates: Templates) -> Rows:
        return (study.rows(name, templates) - study.frame.mean) / study.frame.std

    logits = mlp_logits(
        study.labels,
        (standard("R_tr", "train"), study.facts("R_tr")),
        (standard("R_va", "audit"), study.facts("R_va")),
        (standard("F", "audit"), study.target.forget),
        seed,
    )
    hits = (logits.argmax(-1) == study.labels.objects(study.target.forget)).float()
    return _found(Key("P3", "F", "hit"), study.places, hits, study.target.forget)


def _p4(study: Study, seed: int) -> Found:
    sets: tuple[tuple[str, Templates], ...] = (("R_tr", "train"), ("R_va", "audit"), ("F", "audit"))
    fit, choose, asked = (
        (*sequence_rows(study.view, study.facts(name), templates), study.facts(name))
        for name, templates in sets
    )
    logits = attention_logits(study.labels, fit, choose, asked, seed)
    forget = study.target.forget
    hits = (logits.argmax(-1) == study.labels.objects(forget)).float()
    subjects, relations = tuple(f.subject for f in forget), tuple(f.relation for f in forget)
    return {
        Key("P4", "F", "hit", f"layer {layer}"): Scores(row, subjects, relations)
        for layer, row in zip(depths(study.view.model), hits.double().numpy(), strict=True)
    }


def _p5(study: Study, frozen: Frozen | None) -> Found:
    if frozen is None:
        return {}
    frame, readers = frozen()
    rows = study.rows("F", "audit")
    if rows[:, 0].shape != frame.mean[:, 0].shape:
        return {}
    forget = study.target.forget
    hits = readers.hits(Lesson.of(study.labels, frame(rows), forget))
    return _found(Key("P5", "F", "hit"), study.places, hits, forget)


def _p6(study: Study, seed: int) -> Found:
    """Control tasks at the first and last place; P1 on fitted entities, in other templates."""
    retained, forget, labels = study.facts("R_tr"), study.target.forget, study.labels
    seen = study.lesson(study.frame, "R_tr", "audit")
    found = _found(
        Key("P1", "R_tr_audit", "hit"), study.places, study.transfer.hits(seen), retained
    )
    at = [0, len(study.places) - 1]
    frame, ridge = study.frame, study.transfer.ridge[at]
    fit, test = frame(study.rows("R_tr", "train"))[at], frame(study.rows("F", "audit"))[at]
    sums = {"R_tr": torch.zeros(len(at), len(retained)), "F": torch.zeros(len(at), len(forget))}
    for draw in range(DRAWS):
        drawn = labels.controls((*retained, *forget), retained, (seed, draw))
        own, others = drawn[: len(retained)], drawn[len(retained) :]
        readers = fitted(labels, Lesson.of(labels, fit, retained, own), ridge)
        sums["R_tr"] += readers.hits(Lesson.of(labels, seen.x[at], retained, own))
        sums["F"] += readers.hits(Lesson.of(labels, test, forget, others))
    for name, total in sums.items():
        where = [study.places[i] for i in at]
        found |= _found(Key("P6", name, "hit"), where, total / DRAWS, study.facts(name))
    return found


def _p7(study: Study, seed: int) -> Found:
    forget, labels = study.target.forget, study.labels
    taught, asked = study.rows("F", "train"), study.rows("F", "audit")
    bits = online_bits(labels, forget, taught, asked, study.transfer.ridge, seed)
    saved = uniform_bits(labels, forget) - bits
    return _found(Key("P7", "F", "bits"), study.places, saved, forget)


def _p8(study: Study, _seed: int) -> Found:
    sets: tuple[tuple[str, Templates], ...] = (("R_tr", "train"), ("R_va", "audit"), ("F", "audit"))
    facts = {name: study.facts(name) for name, _ in sets}
    rows = {name: study.rows(name, templates) for name, templates in sets}
    known = {
        name: baseline(study.target, rows[name][:1], facts[name], facts["R_tr"]) for name in facts
    }
    bits = conditional_bits(study.labels, known, rows, facts)
    return _found(Key("P8", "F", "bits"), study.places, bits, study.target.forget)


_MEASURES: dict[str, Callable[[Study, int], Found]] = {
    "P1": _p1,
    "P2": _p2,
    "P3": _p3,
    "P4": _p4,
    "P6": _p6,
    "P7": _p7,
    "P8": _p8,
}


def _positions(facts: Sequence[Fact], chosen: Sequence[Fact]) -> list[int]:
    at = {fact.key: i for i, fact in enumerate(facts)}
    return [at[fact.key] for fact in chosen]


def _found(
    key: Key,
    where: Sequence[Place],
    values: Float[Tensor, "place fact"],
    facts: Sequence[Fact],
) -> Found:
    """Scores at each place, whose name is added to the key's setting."""
    subjects, relations = tuple(f.subject for f in facts), tuple(f.relation for f in facts)
    names = [f"{key.setting}, {place.name}" if key.setting else place.name for place in where]
    return {
        key._replace(setting=name): Scores(row, subjects, relations)
        for name, row in zip(names, values.double().numpy(), strict=True)
    }
