"""CounterFact as a fact set: the official records and the flat ones of EasyEdit.

Source: Meng et al. 2022, arXiv 2202.05262. Differs: the true objects are the facts, and the prompts
about neighbouring subjects are training texts, since their subjects are not given.
"""

from dataclasses import dataclass
from typing import Any

from workbench.errors import DataError
from workbench.facts.assemble import Row, assemble, make_row, template
from workbench.facts.mentions import name_finder
from workbench.facts.records import Fields, check_fields, parse_json, shown, summary
from workbench.facts.schema import FactSet

OFFICIAL: Fields = {
    "requested_rewrite": ("record", True),
    "paraphrase_prompts": ("texts", True),
    "neighborhood_prompts": ("texts", True),
    "case_id": ("number", False),
    "pararel_idx": ("number", False),
    "attribute_prompts": ("texts", False),
    "generation_prompts": ("texts", False),
}
REWRITE: Fields = {
    "prompt": ("text", True),
    "relation_id": ("text", True),
    "subject": ("text", True),
    "target_true": ("record", True),
    "target_new": ("record", False),
}
OBJECT: Fields = {"str": ("text", True), "id": ("text", False)}
FLAT: Fields = {
    "subject": ("text", True),
    "prompt": ("text", True),
    "ground_truth": ("text", True),
    "rephrase_prompt": ("text", True),
    "locality_prompt": ("text", True),
    "locality_ground_truth": ("text", True),
    "case_id": ("number", False),
    "target_new": ("text", False),
}
NEIGHBOUR = "neighbour"
"""Form of the training texts that are made of neighbourhood prompts."""


@dataclass(frozen=True)
class Case:
    """What one record of either form says.

    Attributes:
        prompt: field that it stands in, and the prompt.
        paraphrases: further prompts; the last one is kept for the audit.
        neighbours: prompts about other subjects, and their objects.
    """

    where: str
    subject: str
    relation: str
    object: str
    prompt: tuple[str, str]
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]


def read_counterfact(name: str, content: str) -> FactSet:
    """Reads CounterFact, with the true object of each record as its fact.

    The prompt and the first paraphrase are training templates, the last paraphrase is for the
    audit. Each neighbourhood prompt becomes a training text with its object, unless the subject of
    any fact stands in it. The flat form names no relations: there the prompt without its subject is
    the relation.

    Args:
        name: what the fact set is called.
        content: the JSON text, a list of records.

    Raises:
        DataError: broken JSON, or a record with a field that is unknown, missing or wrong, with its
            index from 0.
    """
    records = parse_json(content, "the file")
    if not isinstance(records, list) or not records:
        raise DataError(f"the file holds {shown(records)}, wanted a list of CounterFact records")
    cases = [_case(record, f"record {n}") for n, record in enumerate(records)]
    unusable: list[str] = []
    facts = [_fact_row(case, unusable) for case in cases]
    texts, notes = _neighbour_rows(cases)
    noted = summary(
        "paraphrases lack their subject, hold '{}' or repeat a prompt, and were left out", unusable
    )
    return assemble(name, [*facts, *texts], (*noted, *notes))


def _case(record: Any, where: str) -> Case:
    flat = (
        isinstance(record, dict) and "requested_rewrite" not in record and "ground_truth" in record
    )
    return _flat_case(record, where) if flat else _official_case(record, where)


def _official_case(record: Any, where: str) -> Case:
    check_fields(record, OFFICIAL, where)
    rewrite = record["requested_rewrite"]
    check_fields(rewrite, REWRITE, where, "requested_rewrite.")
    for field in ("target_true", "target_new"):
        if field in rewrite:
            check_fields(rewrite[field], OBJECT, where, f"requested_rewrite.{field}.")
    answer = rewrite["target_true"]["str"]
    return Case(
        where,
        rewrite["subject"],
        rewrite["relation_id"],
        answer,
        ("requested_rewrite.prompt", rewrite["prompt"]),
        tuple(record["paraphrase_prompts"]),
        tuple((prompt, answer) for prompt in record["neighborhood_prompts"]),
    )


def _flat_case(record: dict[str, Any], where: str) -> Case:
    check_fields(record, FLAT, where)
    subject, prompt = record["subject"], record["prompt"]
    neighbour = record["locality_prompt"], record["locality_ground_truth"]
    paraphrases = (record["rephrase_prompt"],)
    relation = template(prompt, subject)
    return Case(
        where,
        subject,
        relation,
        record["ground_truth"],
        ("prompt", prompt),
        paraphrases,
        (neighbour,),
    )


def _fact_row(case: Case, unusable: list[str]) -> Row:
    """The fact of a record; paraphrases that give no further template are added to `unusable`."""
    field, prompt = case.prompt
    first = template(prompt, case.subject)
    if "{}" not in first:
        raise DataError(
            f"{case.where}: field {field!r} is {prompt!r}, wanted '{{}}' or {case.subject!r} in it"
        )
    train, audit = [first], []
    for paraphrase in case.paraphrases:
        made = template(paraphrase, case.subject)
        if "{}" in paraphrase or "{}" not in made or made in train:
            unusable.append(f"{paraphrase!r} in {case.where}")
        else:
            (audit if paraphrase == case.paraphrases[-1] else train).append(made)
    fact = {"subject": case.subject, "relation": case.relation, "object": case.object}
    return make_row(case.where, fact | {"prompts": train, "audit_prompts": audit})


def _neighbour_rows(cases: list[Case]) -> tuple[list[Row], tuple[str, ...]]:
    """One text per distinct prompt that holds no subject of a fact; the others are counted."""
    subjects_in = name_finder(case.subject for case in cases)
    prompts = dict.fromkeys(prompt for case in cases for prompt, _ in case.neighbours)
    telling = {prompt: found[0] for prompt in prompts if (found := subjects_in(prompt))}
    objects: dict[str, tuple[str, str]] = {}
    contradicted: list[str] = []
    for case in cases:
        for prompt, answer in case.neighbours:
            first, place = objects.setdefault(prompt, (answer, case.where))
            if first != answer and prompt not in telling:
                contradicted.append(
                    f"{prompt!r} is {first!r} in {place}, not {answer!r} as in {case.where}"
                )
    rows = [
        make_row(place, {"record": "text", "text": f"{prompt} {answer} .", "form": NEIGHBOUR})
        for prompt, (answer, place) in objects.items()
        if prompt not in telling
    ]
    hold = (
        f"of {len(prompts)} distinct neighbourhood prompts hold a fact's subject and were left out"
    )
    again = "neighbourhood prompts come again with another object; the first was kept"
    notes = summary(hold, [f"{subject!r} in {prompt!r}" for prompt, subject in telling.items()])
    return rows, (*notes, *summary(again, contradicted))
