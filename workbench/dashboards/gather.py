"""Gathering the data of the feature browser: one pass over texts, then features batch by batch."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy import sparse
from tqdm.auto import tqdm

from workbench.artifacts import new_folder, require_replaceable, write_json
from workbench.dashboards import about, relations
from workbench.dashboards.events import EVENT, Corpus, of_features, read_corpus, write_events
from workbench.dashboards.tallies import Tally
from workbench.errors import DataError, SAEError
from workbench.facts.target import Target
from workbench.locate.concept import Concept
from workbench.models.load import model_name, versions, weights_sha256
from workbench.sae.load import require_fit, require_width, save_sae
from workbench.sae.read import require_plain_decoder

TOGETHER_TOKENS = 100_000
"""Tokens, evenly from the corpus, on which it is counted which features fire together."""
ROW_GROUP = 64
"""Features that are read from disk together."""


@dataclass(frozen=True)
class DashboardConfig:
    """What is gathered.

    Attributes:
        tokens: most tokens of the texts that are read.
        context_size: tokens of a passage, BOS counted.
        features_at_once: features whose activations are in memory together.
        seed: decides which passages stand for a quantile group.
    """

    tokens: int = 1_000_000
    context_size: int = 128
    features_at_once: int = 1024
    seed: int = 0


def make_dashboards(
    sae: Any,
    model: Any,
    target: Target | None,
    out: Path | str,
    texts: Any = None,
    config: DashboardConfig = DashboardConfig(),
) -> Path:
    """Writes what a browser shows of every feature, and says where it is.

    The model reads the texts once; activations lie on disk meanwhile, at 12 bytes each, and are
    taken up in batches of features, so that memory does not grow with the texts. `out` appears only
    when it is complete.

    Args:
        target: what is to be forgotten; None to look at an SAE alone.
        texts: as `harvest` takes them; by default the corpus of the target's facts.

    Raises:
        SAEError: the SAE fits neither the model's weights nor its width, or there are no texts.
        DataError: `out` holds what the workbench did not write, or saved edits or bookmarks.
    """
    _require_nothing_of_the_users(Path(out))
    require_fit(sae, model)
    require_width(sae, model)
    if texts is None and target is None:
        raise SAEError("neither a target nor texts: wanted one of them, to have something to read")
    source = target.facts if texts is None and target is not None else texts
    with new_folder(out) as folder, tempfile.TemporaryDirectory(dir=folder) as temporary:
        corpus = read_corpus(model, source, config.tokens, config.context_size)
        states = _states(corpus, target) if texts is None and target is not None else None
        columns, facts = _about(model, sae, target)
        paths = write_events(model, sae, corpus, Path(temporary), config.features_at_once)
        _write_features(model, sae, corpus, states, columns, facts, paths, folder, config)
        _write_corpus(corpus, model.tokenizer, folder)
        save_sae(sae, folder / "sae")
        write_json(folder / "card.json", _card(model, sae, corpus, states, target, config))
    return Path(out)


def _require_nothing_of_the_users(out: Path) -> None:
    require_replaceable(out)
    kept = [name for name in ("edits", "audits", "bookmarks.json") if (out / name).exists()]
    if kept:
        raise DataError(
            f"{out}: holds {kept[0]} of the browser's user, which gathering anew would delete; "
            "name another folder, or move it away"
        )


def _states(corpus: Corpus, target: Target) -> np.ndarray:
    """For each token whether its document states the target."""
    documents = np.array([target.states_target(d) for d in target.facts.corpus])
    return documents[corpus.document][corpus.passage]


def _about(model: Any, sae: Any, target: Target | None) -> tuple[about.Columns, np.ndarray | None]:
    if target is None:
        return {}, None
    require_plain_decoder(sae)
    concept = Concept.from_target(target)
    columns = {**about.scores(model, sae, concept), **about.effects(model, sae, concept)}
    return columns, about.by_fact(model, sae, about.asked_facts(target)).numpy().T


def _write_features(
    model: Any,
    sae: Any,
    corpus: Corpus,
    states: np.ndarray | None,
    columns: about.Columns,
    facts: np.ndarray | None,
    paths: list[Path],
    folder: Path,
    config: DashboardConfig,
) -> None:
    rows = relations.unit_rows(sae)
    places = relations.on_a_map(rows)
    together = _together(paths, corpus, len(rows))
    counts = np.asarray(together.sum(0)).ravel()
    overview, writer = [], None
    for path, start in zip(
        tqdm(paths, desc="features", unit="batch", leave=False),
        range(0, len(rows), config.features_at_once),
        strict=True,
    ):
        size = min(config.features_at_once, len(rows) - start)
        tally = Tally(corpus, of_features(path, len(corpus.tokens)), start, size)
        numbers = _numbers(tally, states)
        span = slice(start, start + size)
        numbers |= {"map_x": places[span, 0].numpy(), "map_y": places[span, 1].numpy()}
        numbers |= {name: values[span].float().numpy() for name, values in columns.items()}
        overview.append(pd.DataFrame(numbers, index=np.arange(start, start + size)))
        table = _detail(model, tally, states, rows, together, counts, facts, config.seed)
        if writer is None:
            writer = pq.ParquetWriter(folder / "features.parquet", table.schema)
        writer.write_table(table, ROW_GROUP)
    assert writer is not None
    writer.close()
    frame = pd.concat(overview).rename_axis("feature")
    frame.to_parquet(folder / "overview.parquet")


def _numbers(tally: Tally, states: np.ndarray | None) -> dict[str, np.ndarray]:
    counted = tally.corpus.counted
    found = {
        "density": tally.rate(counted),
        "peak": tally.peak,
        "mean": tally.mean().astype(np.float32),
    }
    if states is not None:
        found["rate_forget"] = tally.rate(counted & states)
        found["rate_retain"] = tally.rate(counted & ~states)
    return found


def _detail(
    model: Any,
    tally: Tally,
    states: np.ndarray | None,
    rows: torch.Tensor,
    together: sparse.csc_matrix,
    counts: np.ndarray,
    facts: np.ndarray | None,
    seed: int,
) -> pa.Table:
    """All that is shown of single features, one row for each."""
    start, size, everything = tally.start, tally.size, np.ones(len(tally.corpus.tokens), bool)
    top, drawn = tally.top(), tally.quantiles(seed)
    chosen = [np.concatenate(pair).astype(np.int64) for pair in zip(top, drawn, strict=True)]
    ends = np.cumsum([len(c) for c in chosen])[:-1]
    begin, acts = tally.windows(np.concatenate(chosen))
    like, cosine = relations.by_cosine(rows, start, size)
    fire, jaccard = relations.by_cofiring(together, counts, start, size)
    tokens, logits = relations.by_logits(model, rows[start : start + size])
    forget = everything if states is None else states
    rest = [] if states is None else [("histogram_retain", tally.histogram(~states))]
    kinds = {
        "top": [len(t) for t in top],
        "begin": [b.astype(np.int32) for b in np.split(begin, ends)],
        "at": [tally.token[c].astype(np.int32) for c in chosen],
        "acts": [a.ravel() for a in np.split(acts, ends)],
        "histogram": list(tally.histogram(forget).astype(np.int32)),
        "positions": list(tally.by_position().astype(np.float32)),
        "like": list(like.int().numpy()),
        "cosine": list(cosine.numpy()),
        "fire": list(fire.astype(np.int32)),
        "jaccard": list(jaccard),
        "tokens": list(tokens.int().numpy()),
        "logits": list(logits.numpy()),
        **{name: list(values.astype(np.int32)) for name, values in rest},
        **_facts(facts, start, size),
    }
    return pa.table({"feature": np.arange(start, start + size, dtype=np.int32), **kinds})


def _facts(facts: np.ndarray | None, start: int, size: int) -> dict[str, list[np.ndarray]]:
    """The facts on which each feature fires, and how much."""
    if facts is None:
        return {}
    rows = [np.flatnonzero(row > 0).astype(np.int32) for row in facts[start : start + size]]
    peaks = [facts[start + i][row].astype(np.float32) for i, row in enumerate(rows)]
    return {"fact": rows, "fact_act": peaks}


def _together(paths: list[Path], corpus: Corpus, d_sae: int) -> sparse.csc_matrix:
    """[token, feature] ones where a feature fires, on some tokens."""
    step = max(1, len(corpus.tokens) // TOGETHER_TOKENS)
    rows, columns = [], []
    for path in paths:
        found = np.fromfile(path, EVENT)
        events = found[found["token"] % step == 0]
        rows.append(events["token"] // step)
        columns.append(events["feature"])
    row, column = (np.concatenate(part).astype(np.int64) for part in (rows, columns))
    shape = (-(-len(corpus.tokens) // step), d_sae)
    return sparse.csc_matrix((np.ones(len(row), np.float32), (row, column)), shape=shape)


def _write_corpus(corpus: Corpus, tokenizer: Any, folder: Path) -> None:
    columns = {"token": corpus.tokens, "passage": corpus.passage, "position": corpus.position}
    pq.write_table(pa.table(columns), folder / "tokens.parquet")
    strings = list(_strings(tokenizer))
    pq.write_table(pa.table({"text": strings}), folder / "vocabulary.parquet")


def _strings(tokenizer: Any) -> Iterator[str]:
    """Each token as it looks within a text, with its space in front where it has one."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for i, name in enumerate(names):
        text = tokenizer.decode([i], clean_up_tokenization_spaces=False)
        spaced = name is not None and name[:1] in "Ġ▁"
        yield f" {text}" if spaced and not text.startswith(" ") else text


def _card(
    model: Any,
    sae: Any,
    corpus: Corpus,
    states: np.ndarray | None,
    target: Target | None,
    config: DashboardConfig,
) -> dict[str, Any]:
    shown = about.asked_facts(target) if target else []
    return {
        "model": model_name(model),
        "model_sha256": weights_sha256(model),
        "site": sae.cfg.metadata.hook_name,
        "architecture": sae.cfg.architecture(),
        "features": sae.cfg.d_sae,
        "tokens": len(corpus.tokens),
        "counted": int(corpus.counted.sum()),
        "documents": int(corpus.document.max()) + 1,
        "forget_tokens": None if states is None else int((states & corpus.counted).sum()),
        "facts": target.facts.name if target else None,
        "target": target.name if target else None,
        "asked": [[f.subject, f.relation, f.object] for f in shown],
        "config": asdict(config),
        "versions": versions(),
    }
