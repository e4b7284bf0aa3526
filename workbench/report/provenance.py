"""Where a report comes from: models, data, plan and hashes."""

from collections.abc import Mapping
from typing import Any

from workbench.audit.schema import AuditReport
from workbench.report.markup import Html, brief, folded, html, number, plain, table, yes

TWO = {"Name": "", "Value": ""}


def provenance(report: AuditReport) -> Html:
    """Tables of everything that one needs to do the audit again."""
    return Html(
        "\n".join(
            [
                _run(report),
                _models(report),
                _target(report),
                _checks(report),
                _folds(report),
                _plan(report),
            ]
        )
    )


def _run(report: AuditReport) -> Html:
    card, done = report.card, report.card.integrity
    pairs = {
        "schema": report.schema,
        "battery version": report.battery_version,
        "battery sha256": card.battery_sha256,
        "plan sha256": card.prereg_sha256,
        "profile": card.profile,
        "seed": card.seed,
        "models left untouched": number(done.untouched),
        "values repeated bit for bit": number(done.repeated),
        "plan unchanged": yes(done.prereg_unchanged),
        **dict(sorted(card.env.items())),
    }
    return _pairs("run", "Run", pairs)


def _models(report: AuditReport) -> Html:
    models = report.card.models
    edited, delta = models.edited, models.edited.delta
    rows: list[list[Any]] = [
        ["original", models.original.name, models.original.recipe or "not known"],
        [
            "edited",
            ", ".join(
                (
                    *edited.hooks,
                    *([f"filter {edited.filter}"] if edited.filter else []),
                    *([f"system prompt «{edited.prompt}»"] if edited.prompt else []),
                )
            )
            or "weights alone",
            f"{delta.changed_tensors} tensors changed, {brief(delta.rel_fro)} of the norm, rank "
            f"{delta.max_rank}"
            + "".join(
                f"; {share:.0%} of the weights alike in {bits} bits"
                for bits, share in delta.alike_in_bits.items()
            ),
        ],
    ]
    hashes = [models.original.sha256, edited.sha256]
    loo = ["", ""]
    for i, gold in enumerate(models.gold):
        rows.append([f"gold {i}", gold.name, gold.recipe or "not known: on the user's word"])
        hashes.append(gold.sha256)
        verdicts = report.loo_verdicts
        loo.append(verdicts[i].replace("_", " ") if i < len(verdicts) else "not audited")
    head = dict.fromkeys(("Model", "Name", "Recipe or change", "Against the other golds"), "")
    cells = [[*row, v, h] for row, v, h in zip(rows, loo, hashes, strict=True)]
    return table("models", "Models", head | {"sha256": "hash"}, cells)


def _target(report: AuditReport) -> Html:
    card = report.card
    t, data = card.target, card.data
    pairs = {
        "target": t.id,
        "type": t.type,
        "definition": t.definition,
        "facts": f"{t.n_facts} about {t.n_entities} entities, from {t.facts}, seed {t.seed}",
        "facts sha256": t.facts_sha256,
        "facts by fold": plain(data.n),
        "what is to be prevented, for whom": t.dual_use.statement if t.dual_use else "not stated",
        "share of the most common object": plain(data.prior),
        "candidates": plain(data.candidates),
        "guessable, hence not scored": plain([" ".join(f) for f in data.guessable_dropped]),
    }
    return _pairs("target", "Target", pairs)


def _checks(report: AuditReport) -> Html:
    head = {"Check": "", "Result": "", "Value": "number", "Limit": "number", "What": "remark"}
    rows = [
        [
            c.id,
            "pass" if c.passed else Html("<strong>FAIL</strong>"),
            brief(c.value),
            brief(c.limit),
            c.note,
        ]
        for c in report.card.data.leak_checks
    ]
    return table("contract", "Data contract", head, rows) if rows else Html()


def _folds(report: AuditReport) -> Html:
    pairs = {
        f"rotation {i}, {name}": ", ".join(entities)
        for i, folds in enumerate(report.card.data.folds)
        for name, entities in sorted(folds.items(), key=lambda item: "TSV".find(item[0]))
    }
    return folded("Entities of the folds", _pairs("folds", "Folds", pairs))


def _plan(report: AuditReport) -> Html:
    """The plan without the folds, which stand beside it."""
    leaves = _leaves({k: v for k, v in report.plan.items() if k != "folds"})
    return folded("The plan", _pairs("plan", "Plan", leaves)) if leaves else Html()


def _leaves(value: Mapping[str, Any]) -> dict[str, str]:
    """Every leaf of nested mappings as text by its dotted name, in alphabetical order."""
    found: dict[str, str] = {}
    for key, inner in sorted(value.items()):
        if isinstance(inner, Mapping):
            found |= {f"{key}.{name}": leaf for name, leaf in _leaves(inner).items()}
        else:
            found[str(key)] = plain(inner)
    return found


def _pairs(id_: str, caption: str, pairs: Mapping[str, Any]) -> Html:
    return table(id_, caption, TWO, [[html(k), plain(v)] for k, v in pairs.items()])
