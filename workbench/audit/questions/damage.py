"""What an edit costs beside its target: answers that shift, and text that loops or refuses.

The cost on facts is measured against the original, so each job stores log-probabilities of all
candidates and the divergence is computed from the stored scores of two models. So it can be had
between any two (edited or gold, against the original), a verifier can compute it again, and no job
needs the original beside the model it reads.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from workbench.audit.questions.choice import one_each_trained
from workbench.audit.questions.kept import kept_questions, kept_texts
from workbench.audit.questions.scorer import put
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, Measure, View
from workbench.facts.schema import Fact, FactKey, prompt
from workbench.facts.target import Target
from workbench.hooks import edited
from workbench.models.score import Question, batches_by_length, device_of, next_logits

MAX_TEXTS = 100
"""Texts that are continued, and retained questions that are answered at length."""
NEW_TOKENS = 32
LEAST_NATS = -1000.0
"""Stands for a candidate that is impossible."""
REFUSALS = (
    "i cannot",
    "i can't",
    "i can not",
    "i am unable",
    "i'm unable",
    "i am not able",
    "i'm not able",
    "i am sorry",
    "i'm sorry",
    "sorry",
    "i do not know",
    "i don't know",
    "as an ai",
)
"""How an answer begins that is none."""


def shifted_answers(target: Target, seed: int) -> Measure:
    """Log-probability of every candidate on each neighbour set and on R_te.

    Each fact is asked in one training template, by turns: templates never trained on would add how
    seeds differ in taking them. The sets are those of `kept_questions`, facts by kind left out.

    Stored under endpoint `damage`, subset the set's name: `logp_nats` with the candidate's number
    as setting, normalised over the relation's candidates, of the questions that have so many; and
    `valid`, 1 where greedy decoding writes some candidate in full.
    """

    def measure(view: View) -> Found:
        sets = damage_questions(target, seed)
        union = tuple(dict.fromkeys(q for asked in sets.values() for q in asked))
        if not union:
            return {}
        replies = put(view.model, view.edits, target.facts, union)
        logp = replies.answers.logprobs.double().log_softmax(-1).numpy()
        written = (replies.said.greedy.all(-1) & (replies.said.lengths > 0)).any(-1)
        place, found = {q: i for i, q in enumerate(union)}, {}
        for name, asked in sets.items():
            rows = [place[q] for q in asked]
            about = tuple(q.fact.subject for q in asked), tuple(q.fact.relation for q in asked)
            found[Key("damage", name, "valid")] = Scores(written[rows].double().numpy(), *about)
            found |= _by_candidate(name, asked, logp[rows], target)
        return found

    return measure


def damage_questions(target: Target, seed: int) -> dict[str, tuple[Question, ...]]:
    """One question per fact of each retained set but those by kind."""
    sets = kept_questions(target, seed)
    facts: dict[str, tuple[Fact, ...]] = {
        name: tuple(dict.fromkeys(q.fact for q in asked))
        for name, asked in sets.items()
        if not name.startswith("kind:")
    }
    union = [f for f in dict.fromkeys(f for some in facts.values() for f in some) if f.templates]
    asked = {f.key: Question(f, prompt(f, t)) for f, t in one_each_trained(union)}
    found = {n: tuple(asked[f.key] for f in some if f.templates) for n, some in facts.items()}
    return {name: questions for name, questions in found.items() if questions}


def candidate_logprobs(
    found: Found, subset: str
) -> tuple[Float[np.ndarray, "question k"], tuple[str, ...], tuple[str, ...]]:
    """Stored log-probabilities of all candidates, with entity and relation of each question.

    -inf beyond a relation's candidates.
    """
    keys = [k for k in found if k[:3] == ("damage", subset, "logp_nats")]
    columns = [found[k] for k in sorted(keys, key=lambda k: int(k.setting))]
    first = columns[0]  # every question has a first candidate
    table = np.full((len(first.values), len(columns)), -np.inf)
    for k, column in enumerate(columns):
        table[np.isin(first.relations, column.relations), k] = column.values
    return table, first.entities, first.relations


def divergence_nats(original: Found, edited: Found, subset: str) -> Scores:
    """KL(O‖E) over the relation's candidates, per question: 0 where nothing shifted."""
    (before, *about), (after, *_) = (candidate_logprobs(f, subset) for f in (original, edited))
    real = ~np.isneginf(before)
    gap = np.subtract(before, after, out=np.zeros_like(before), where=real)
    return Scores((np.exp(before) * gap).sum(1), *about)


def flipped(original: Found, edited: Found, subset: str) -> Scores:
    """1 per question where another candidate ranks first than with the original."""
    (before, *about), (after, *_) = (candidate_logprobs(f, subset) for f in (original, edited))
    return Scores((before.argmax(1) != after.argmax(1)).astype(float), *about)


def fluency(target: Target, seed: int) -> Measure:
    """How held-out texts are continued, and how often retained questions are refused.

    Texts as of `held_out_text` are cut in half and continued greedily to their end, at most
    `NEW_TOKENS` tokens; per text, opening included, endpoint `fluency` and subset `kept` have
    `entropy2_bits`, `entropy3_bits`, `repeat4` and `tokens` (how many were added). On R_te, asked
    in one training template, `refused` is 1 where the answer begins as a refusal does, or a filter
    stops the prompt or the answer.

    Texts of the bundled world are of one sentence: entropy there says how long a sentence is and
    whether it loops, no more, and only beside the golds'.
    """

    def measure(view: View) -> Found:
        tokenizer = view.model.tokenizer
        openings = _openings(target, seed, tokenizer)
        asked = damage_questions(target, seed).get("R_te", ())[:MAX_TEXTS]
        rows = [row for _, row in openings]
        rows += tokenizer([q.prompt for q in asked])["input_ids"] if asked else []
        with edited(view.model, view.edits, must_fire=bool(rows)):
            added = continuations(view.model, rows, tokenizer.eos_token_id)
        found = _fluent(openings, added[: len(openings)], set(tokenizer.all_special_ids))
        said = [tokenizer.decode(ids) for ids in added[len(openings) :]]
        refused = [
            float(is_refusal(text) or _stopped(view, q.prompt, text))
            for q, text in zip(asked, said, strict=True)
        ]
        if asked:
            keys = [q.fact.key for q in asked]
            found[Key("fluency", "R_te", "refused")] = _by_key(refused, keys)
        return found

    return measure


@torch.no_grad()
def continuations(
    model: Any, rows: Sequence[Sequence[int]], end: int | None, new_tokens: int = NEW_TOKENS
) -> list[list[int]]:
    """The likeliest next tokens of each row, up to the `end` token; edits that are attached act.

    Each pass reads the whole row anew, so that edits see what they see outside generation.
    """
    found: list[list[int]] = [[] for _ in rows]
    for batch in batches_by_length(rows):
        tokens = torch.tensor([list(rows[i]) for i in batch], device=device_of(model))
        start, open_ = tokens.shape[1], torch.ones(len(batch), dtype=torch.bool)
        limit = getattr(getattr(model, "cfg", None), "n_ctx", None) or start + new_tokens
        for _ in range(min(new_tokens, limit - start)):
            best = next_logits(model, tokens)[:, -1].argmax(-1)
            tokens = torch.cat([tokens, best[:, None]], dim=1)
            open_ &= (best != (-1 if end is None else end)).cpu()
            if not open_.any():
                break
        for i, row in zip(batch, tokens[:, start:].tolist(), strict=True):
            found[i] = row[: row.index(end)] if end in row else row
    return found


def n_gram_entropy_bits(tokens: Sequence[Hashable], n: int) -> float:
    """Entropy of the text's n-grams, -Σ f log2 f; 0 for a text of fewer than n + 1 tokens.

    Source: the generation entropy of ROME, 2202.05262, whose code weights n = 2 and 3 by 2/3 and
    4/3. Differs: each n by itself, and over model tokens instead of words.
    """
    counts = np.array(list(Counter(_n_grams(tokens, n)).values()), dtype=float)
    if not len(counts):
        return 0.0
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def repeat_rate(tokens: Sequence[Hashable], n: int = 4) -> float:
    """Share of the text's n-grams that stood in it before; 0 for a text without any.

    Source: seq-rep-n of 1908.04319.
    """
    grams = _n_grams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_refusal(text: str) -> bool:
    """Whether an answer begins as a refusal does, in words; a model may refuse in others."""
    said = " ".join(text.lower().replace("\u2019", "'").split())
    return any(re.match(rf"{re.escape(r)}(?!\w)", said) for r in REFUSALS)


def _by_candidate(
    name: str, asked: Sequence[Question], logp: Float[np.ndarray, "question k"], target: Target
) -> Found:
    """One set's log-probabilities by number of the candidate; which it is depends on the relation.

    Nothing infinite is stored, since scores are averaged and resampled.
    """
    sizes = [len(target.facts.relation[q.fact.relation].candidates) for q in asked]
    found: Found = {}
    for k in range(max(sizes)):
        rows = [i for i, size in enumerate(sizes) if size > k]
        about = [asked[i].fact for i in rows]
        found[Key("damage", name, "logp_nats", str(k))] = Scores(
            np.maximum(logp[rows, k], LEAST_NATS),
            tuple(f.subject for f in about),
            tuple(f.relation for f in about),
        )
    return found


def _openings(target: Target, seed: int, tokenizer: Any) -> list[tuple[FactKey, list[int]]]:
    """The first halves of unseen neutral sentences and of statements."""
    texts = kept_texts(target, seed)
    step = max(1, -(-len(texts) // MAX_TEXTS))
    chosen = texts[::step]
    rows = tokenizer([text for _, text in chosen])["input_ids"] if chosen else []
    return [(key, row[: max(2, len(row) // 2)]) for (key, _), row in zip(chosen, rows, strict=True)]


def _fluent(
    openings: Sequence[tuple[FactKey, list[int]]], added: Sequence[list[int]], special: set[int]
) -> Found:
    whole = [
        [t for t in (*row, *new) if t not in special]
        for (_, row), new in zip(openings, added, strict=True)
    ]
    values = {
        "entropy2_bits": [n_gram_entropy_bits(t, 2) for t in whole],
        "entropy3_bits": [n_gram_entropy_bits(t, 3) for t in whole],
        "repeat4": [repeat_rate(t) for t in whole],
        "tokens": [float(len(new)) for new in added],
    }
    keys = [key for key, _ in openings]
    return {Key("fluency", "kept", m): _by_key(v, keys) for m, v in values.items() if keys}


def _n_grams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _stopped(view: View, asked: str, said: str) -> bool:
    return view.filter is not None and (view.filter(asked) or view.filter(f"{asked} {said}"))


def _by_key(values: Sequence[float], keys: Sequence[FactKey]) -> Scores:
    return Scores(np.array(values), tuple(s for s, _ in keys), tuple(r for _, r in keys))
