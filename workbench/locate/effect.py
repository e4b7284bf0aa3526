"""The exact causal effect of editing features one by one, for thousands of features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import EditError
from workbench.hooks import Site
from workbench.hooks.rerun import Rerun
from workbench.locate.concept import Prompt, Tokens, tokenized
from workbench.models.score import batches_by_length, device_of
from workbench.sae.load import max_activation
from workbench.sae.read import Reading, require_plain_decoder

FIRST_TOKENS = 4096
"""Tokens of prompts in one unedited pass."""
RERUN_TOKENS = 8192
"""Tokens in one edited pass."""
VALUES = 2**25
"""Activations, logits, or cached keys and values held at a time."""
SAME_START = 64
"""Runs that begin at the same token from which on they have a pass to themselves."""


@dataclass(frozen=True)
class Effects:
    """What editing features does to the answers of prompts, in nats.

    Attributes:
        each: how much less likely the answer is with one feature edited. Where prompts have no
            answer: how far the next-token distribution moves after the labelled tokens, or else
            after the last one (mean KL divergence from the unedited one).
        base: the same with the features edited that are edited in all of `each`; zero without any.
        runs: edited runs of a prompt that this took.
    """

    each: Float[Tensor, "prompt k"]
    base: Float[Tensor, " prompt"]
    runs: int


@torch.no_grad()
def exact_effects(
    model: Any,
    sae: Any,
    prompts: Sequence[Prompt],
    features: Int[Tensor, " k"],
    *,
    dose: float = 0.0,
    base: Int[Tensor, " base"] | None = None,
    bos: bool = False,
    progress: bool = True,
) -> Effects:
    """Edits each feature alone, where it fires, and measures the answers.

    Each value is that of a full forward pass with the edit (`but_bos` of `Rescale` for dose 0, else
    of `Clamp` where active; without `but_bos` if `bos`). But the stream before the SAE's site is
    computed once per prompt, only prompts in which the feature fires are run, only from the first
    token on which it does, and only the layers after the site.

    Args:
        dose: what an active feature is set to, in multiples of its largest activation; 0 ablates.
        base: features edited along with each feature, at the same dose.
        bos: edit the first token too; SAEs are trained without it.
        progress: show a bar.

    Raises:
        EditError: some prompts have an answer and some do not, or the SAE's decoder is more than
            activations times rows. SAEError: a dose other than 0, and the SAE carries no largest
            activations.
    """
    require_plain_decoder(sae)
    given = tokenized(model.tokenizer, prompts)
    require_alike(given)
    edit = _Edit(sae, dose, torch.zeros(0, dtype=torch.long) if base is None else base, bos)
    each, alone = torch.zeros(len(prompts), len(features)), torch.zeros(len(prompts))
    runs = 0
    with tqdm(
        total=len(prompts) * max(1, len(features)),
        desc="exact effects",
        unit="pair",
        unit_scale=True,
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for indices in batches(model, sae, given):
            batch, index = _Batch(model, edit, [given[i] for i in indices]), torch.tensor(indices)
            alone[index] = batch.base_effect
            each[index] = batch.base_effect[:, None]
            for columns in torch.arange(len(features)).split(max(1, VALUES // batch.n_tokens)):
                for rows, which, effect in batch.effects(features[columns]):
                    each[index[rows], columns[which]] = effect
                    runs += len(effect)
                bar.update(len(indices) * len(columns))
    return Effects(each, alone, runs)


def require_alike(given: Sequence[Tokens]) -> None:
    """Raises EditError unless all prompts have answers, or none has."""
    if len({bool(t.answer) for t in given}) > 1:
        raise EditError("some prompts have an answer and some do not: wanted all or none")


def batches(model: Any, sae: Any, given: Sequence[Tokens]) -> Iterator[list[int]]:
    """Indices of prompts with equally many tokens, and equally many in the answer.

    All activations of a batch, and its logits, are at most `VALUES` numbers, or it is one prompt.
    """
    most = min(FIRST_TOKENS, VALUES // sae.cfg.d_sae)
    by_answer: dict[int, list[int]] = {}
    for i, tokens in enumerate(given):
        by_answer.setdefault(len(tokens.answer), []).append(i)
    for indices in by_answer.values():
        for batch in batches_by_length([given[i].ids for i in indices], most):
            keep = max(given[indices[j]].keep for j in batch)
            size = max(1, VALUES // (keep * model.cfg.d_vocab))
            for start in range(0, len(batch), size):
                yield [indices[j] for j in batch[start : start + size]]


def answer_logprobs(
    logits: Float[Tensor, "n keep vocab"], answers: Int[Tensor, "n keep"]
) -> Float[Tensor, " n"]:
    """Log-probability of answers, in float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, answers[..., None])[..., 0]
    return (chosen - logits.logsumexp(-1)).sum(-1)


@dataclass(frozen=True)
class _Edit:
    """What is done to a feature where it fires, and the features it is always done to."""

    sae: Any
    dose: float
    base: Int[Tensor, " base"]
    bos: bool

    def change(self, reading: Reading, features: Int[Tensor, " k"]) -> Float[Tensor, "batch pos k"]:
        """How much each feature's activation changes."""
        acts = reading.of(features)
        wanted = self.dose * max_activation(self.sae)[features].to(acts) if self.dose else 0.0
        change = (wanted - acts) * (acts > 0)
        if not self.bos:
            change[:, 0] = 0
        return change


class _Batch:
    """Prompts of one length, run once unedited.

    Attributes:
        base_effect: what editing the base alone does.
    """

    def __init__(self, model: Any, edit: _Edit, given: Sequence[Tokens]) -> None:
        self.edit, self.device = edit, device_of(model)
        ids = torch.tensor([t.ids for t in given], device=self.device)
        self.pos, self.n_tokens, self.keep = ids.shape[1], ids.numel(), max(t.keep for t in given)
        self.run = Rerun(model, Site.parse(edit.sae.cfg.metadata.hook_name), ids, self.keep)
        self.reading = Reading(edit.sae, self.run.stream)
        self.said = _Said(self.run.logits, given)
        self.base = edit.base.to(self.device)
        self.base_delta, self.base_first = None, None
        self.base_effect = torch.zeros(len(ids))
        if len(self.base):
            change = edit.change(self.reading, self.base)
            self.base_delta = change @ edit.sae.W_dec[self.base].to(change.dtype)
            self.base_first = _first(change).amin(-1, keepdim=True)
            for rows, _, effect in self._measured(self.base_first):
                self.base_effect[rows] = effect

    def effects(self, features: Int[Tensor, " k"]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows, columns and effects of all pairs of a prompt and a feature that fires in it."""
        features = features.to(self.device)
        change = self.edit.change(self.reading, features)
        change[..., torch.isin(features, self.base)] = 0
        first = _first(change)
        if self.base_first is not None:
            first = first.where(first == self.pos, first.minimum(self.base_first))
        yield from self._measured(first, change, self.edit.sae.W_dec[features])

    def _measured(
        self,
        first: Int[Tensor, "batch k"],
        change: Float[Tensor, "batch pos k"] | None = None,
        decoder: Float[Tensor, "k d_model"] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Runs each pair that changes anywhere from the token on which it first does."""
        rows, columns = (first < self.pos).nonzero(as_tuple=True)
        starts = first[rows, columns].clamp_max(self.pos - self.keep)
        if self.run.from_start:
            starts = torch.zeros_like(starts)
        order = starts.argsort(stable=True)
        rows, columns, starts = rows[order], columns[order], starts[order].cpu()
        for begin, end in self._chunks(starts):
            row, column, start = rows[begin:end], columns[begin:end], int(starts[begin])
            delta = torch.zeros((), device=self.device)
            if change is not None and decoder is not None:
                moved = change[row, start:, column]
                delta = moved[..., None] * decoder[column, None].to(moved.dtype)
            if self.base_delta is not None:
                delta = delta + self.base_delta[row, start:]
            logits = self.run.changed(row, start, delta)
            yield row.cpu(), column.cpu(), self.said.less(logits, row).cpu()

    def _chunks(self, starts: Int[Tensor, " pair"]) -> Iterator[tuple[int, int]]:
        """Ranges of pairs that are run together, those that begin late apart from early ones."""
        begin = 0
        while begin < len(starts):
            start = int(starts[begin])
            most = min(RERUN_TOKENS // (self.pos - start), VALUES // self.run.held(start))
            end = min(begin + max(1, most), len(starts))
            later = int(torch.searchsorted(starts, start, right=True))
            if later - begin >= SAME_START:
                end = min(end, later)
            yield begin, end
            begin = end


class _Said:
    """What the unedited model says to prompts, against which edited logits are held."""

    def __init__(self, logits: Float[Tensor, "batch keep vocab"], given: Sequence[Tokens]) -> None:
        device, keep = logits.device, logits.shape[1]
        self.answers: Tensor | None = None
        if given[0].answer:
            self.answers = torch.tensor([t.answer for t in given], device=device)
            self.before = answer_logprobs(logits, self.answers)
        else:
            self.asked: Bool[Tensor, "batch keep"] = torch.stack(
                [t.asked[-keep:] for t in given]
            ).to(device)
            self.before = logits.float().log_softmax(-1)

    def less(
        self, logits: Float[Tensor, "n keep vocab"], rows: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """How much less likely the answers are, or how far the distributions are apart."""
        if self.answers is not None:
            return self.before[rows] - answer_logprobs(logits, self.answers[rows])
        before, asked = self.before[rows], self.asked[rows]
        apart = (before.exp() * (before - logits.float().log_softmax(-1))).sum(-1)
        return (apart * asked).sum(-1) / asked.sum(-1)


def _first(change: Float[Tensor, "batch pos k"]) -> Int[Tensor, "batch k"]:
    """The first token that each feature is changed on; the number of tokens where it never is."""
    changed = change != 0
    return changed.byte().argmax(1).where(changed.any(1), change.shape[1])
