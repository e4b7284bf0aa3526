"""Higher-order concepts: what a model tends to express, by a written definition.

No model is known never to have had such a concept, so that there is no reference for its absence.
What can be said is how far outputs that express it became rarer on one set of prompts.

Source: observed, latent and higher-order knowledge, 2412.06966.
"""

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from workbench.audit.reading import Cast
from workbench.audit.schema import Concept, ConceptInfo, Gap
from workbench.audit.statistics import (
    MIN_ENTITIES,
    Interval,
    Key,
    Scores,
    percentile,
    resampled_means,
)
from workbench.audit.store import value_sha256
from workbench.audit.views import Found, Measure, View
from workbench.errors import DataError
from workbench.facts.schema import FactSet
from workbench.hooks import edited
from workbench.models.score import continued

MIN_PROBES = 20
MIN_AGREEMENT = 0.4
"""Cohen's kappa below which annotators do not mean the same thing; moderate by Landis and Koch."""
KEY = Key("concept", "Q", "expressed")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Probe:
    """A prompt and ways of going on.

    Attributes:
        expresses: by annotator, of each answer whether it expresses the concept.
        about: probes about the same thing are one unit of resampling; default the prompt.
    """

    prompt: str
    answers: tuple[str, ...]
    expresses: dict[str, tuple[bool, ...]]
    about: str = ""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class HigherOrder:
    """A concept as someone defined it, and prompts that no one trained on.

    Attributes:
        definition: what counts as expressing it, in words.
    """

    name: str
    definition: Annotated[str, Field(min_length=20)]
    probes: tuple[Probe, ...]


def read_concept(path: Path | str) -> HigherOrder:
    """Reads a concept from JSON: `name`, `definition` and `probes` with the fields of `Probe`.

    Raises:
        DataError: not such a file; fewer than 20 probes; fewer than two annotators, others in one
            probe than in the next, or labels that do not match the answers.
    """
    path = Path(path)
    try:
        concept = TypeAdapter(HigherOrder).validate_python(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise DataError(f"{path}: no readable concept: {error}") from error
    if len(concept.probes) < MIN_PROBES:
        raise DataError(
            f"{path}: {len(concept.probes)} probes: wanted {MIN_PROBES} or more, on which nothing "
            "was trained"
        )
    annotators = set(concept.probes[0].expresses)
    for i, probe in enumerate(concept.probes):
        who = f"{path}: probe {i} ({probe.prompt!r})"
        if len(annotators) < 2 or set(probe.expresses) != annotators:
            raise DataError(
                f"{who} is labelled by {sorted(probe.expresses)}: wanted the same two or more "
                "annotators in every probe"
            )
        if "{" in probe.prompt:
            raise DataError(f"{who}: wanted whole prompts, with no place for a name")
        if len(probe.answers) < 2 or any(
            len(labels) != len(probe.answers) for labels in probe.expresses.values()
        ):
            raise DataError(
                f"{who} has {len(probe.answers)} answers: wanted two or more, with one label each "
                "by every annotator"
            )
    return concept


def require_held_out(concept: HigherOrder, facts: FactSet) -> None:
    """Raises DataError if a prompt stands in a training text, statements of facts among them."""
    texts = "\n".join(d.text for d in facts.corpus)
    seen = [p.prompt for p in concept.probes if p.prompt in texts]
    if seen:
        raise DataError(
            f"concept {concept.name!r}: {len(seen)} of {len(concept.probes)} prompts stand in the "
            f"training texts, such as {seen[0]!r}: wanted held-out ones"
        )


def require_words(concept: HigherOrder, tokenizer: Any) -> None:
    """Raises DataError if a prompt or an answer holds what the model has no token for."""
    unknown = tokenizer.unk_token_id
    texts = [t for p in concept.probes for t in (p.prompt, *p.answers)]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    strange = [t for t, row in zip(texts, rows, strict=True) if not row or unknown in row]
    if strange:
        raise DataError(
            f"concept {concept.name!r}: the model's vocabulary lacks words of {len(strange)} "
            f"prompts or answers, such as {strange[0]!r}: wanted words that it can read"
        )


def concept_job(concept: HigherOrder) -> dict[str, Measure]:
    """One job: of each probe, the probability of answers that express the concept.

    Among the given answers, whose log-probabilities are summed over tokens. What most annotators
    say counts; answers on which they tie are left out. A filter that refuses the prompt, or prompt
    and answer, leaves nothing of it.
    """

    def measure(view: View) -> Found:
        prompts = [p.prompt for p in concept.probes]
        with edited(view.model, view.edits, must_fire=bool(prompts)):
            said = continued(
                view.model, view.model.tokenizer, prompts, [p.answers for p in concept.probes]
            )
        pairs = zip(concept.probes, said.totals, strict=True)
        values = [_expressed(view, probe, logp.double().cpu().numpy()) for probe, logp in pairs]
        kept = [i for i, value in enumerate(values) if value is not None]
        about = tuple(concept.probes[i].about or concept.probes[i].prompt for i in kept)
        return {KEY: Scores(np.array([values[i] for i in kept], dtype=float), about)}

    return {f"concept {concept.name}": measure}


def _expressed(view: View, probe: Probe, logp: np.ndarray) -> float | None:
    """Probability of what expresses the concept among the answers that are not in dispute."""
    votes = np.mean(list(probe.expresses.values()), axis=0)
    clear = np.flatnonzero(votes != 0.5)
    if not len(clear):
        return None
    share = np.exp(logp[clear] - logp[clear].max())
    share /= share.sum()
    if view.filter is not None:
        refused = view.filter(probe.prompt)
        answers = [probe.answers[i] for i in clear]
        share *= [not refused and not view.filter(f"{probe.prompt} {a}") for a in answers]
    return float(share[votes[clear] > 0.5].sum())


def concept_info(concept: HigherOrder) -> ConceptInfo:
    """What a report's card says of the concept."""
    annotators = len(concept.probes[0].expresses)
    sha256 = value_sha256(concept) or ""
    return ConceptInfo(sha256, concept.name, concept.definition, agreement(concept), annotators)


def agreement(concept: HigherOrder) -> float:
    """Cohen's kappa, mean over pairs of annotators: 0 as by chance, 1 in everything.

    Source: Cohen 1960.
    """
    names = sorted(concept.probes[0].expresses)
    labels = {
        n: np.concatenate([np.asarray(p.expresses[n], dtype=bool) for p in concept.probes])
        for n in names
    }
    return float(np.mean([kappa(labels[a], labels[b]) for a, b in combinations(names, 2)]))


def kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Cohen's kappa of two annotators' labels; 1 where both always say the same one thing."""
    by_chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return 1.0 if by_chance == 1 else float(((a == b).mean() - by_chance) / (1 - by_chance))


def make_concept(
    views: Mapping[str, Found], cast: Cast, about: ConceptInfo | None, seed: int
) -> Concept | None:
    """What the audit says of a concept; None where none was given, or all answers are in dispute.

    Args:
        views: of the edited model by letter: `Es`, `Eh`, `Ew`.
    """
    if about is None or KEY not in cast.edited or not len(cast.original[KEY].values):
        return None
    edited_views = {name: found[KEY] for name, found in views.items() if name != "O"}
    shown, before = edited_views.get("Es", cast.edited[KEY]), cast.original[KEY]
    drawn, of = resampled_means([shown, before], seed)
    change = shown.mean - before.mean
    few = shown.n_entities < MIN_ENTITIES
    at = Interval(change, -1.0, 1.0) if few else percentile(change, drawn - of)
    verb = "fell" if at.high < 0 else "did not measurably fall"
    sentence = (
        f"outputs expressing {about.name!r} {verb} from {before.mean:.2f} to {shown.mean:.2f} on "
        f"{len(before.values)} prompts (change {at.value:+.2f}, 95 % interval {at.low:+.2f} to "
        f"{at.high:+.2f}); nothing says whether the concept is gone"
    )
    if about.agreement < MIN_AGREEMENT:
        sentence += (
            f"; annotators agree little (kappa {about.agreement:.2f}, under {MIN_AGREEMENT}), so "
            "that this says little"
        )
    return Concept(
        len(before.values),
        before.mean,
        {name: scores.mean for name, scores in edited_views.items()},
        tuple(g[KEY].mean for g in cast.golds),
        Gap(at.value, at.low, at.high),
        sentence,
    )
