"""Trying an edit of chosen features at once: what the model then says, and what that costs.

Edits are the same objects as in scripts, and recall is that of `workbench.recall`. Facts of V are
not asked here; an audit of several rotations scores those of S in one of them.
"""

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit import AuditConfig, AuditReport, audit
from workbench.dashboards.store import Dashboards
from workbench.errors import EditError
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Intervention, edited
from workbench.interventions import Clamp, Rescale, Steer, random_controls
from workbench.interventions import Sequence as InTurn
from workbench.models.score import answer, ask, batches_by_length, device_of, next_logits
from workbench.sae.load import require_fit

EDITS = {
    "clamp": "clamp where active, to dose × its largest activation",
    "rescale": "multiply by the dose (0 ablates, 1 leaves)",
    "steer": "add dose × its largest push to every token",
}
"""What can be done to features, and what the dose then means."""
SHOWN_TOKENS = 10
ANSWERS = 12
"""Questions whose answers are shown one by one."""
ASKED = 40
"""Facts of each kind of what is to stay."""
TEXTS = 64


@dataclass(frozen=True)
class Said:
    """One model: its next-token distribution and its answers.

    Attributes:
        probs: after the prompt, over the vocabulary.
        recall: share of questions answered rightly, by kind of fact.
        answers: the candidate it prefers, for each shown question.
        moved: how far its next-token distributions on texts that stay are from the original's, mean
            KL divergence in nats per token.
    """

    probs: Float[Tensor, " vocab"]
    recall: dict[str, float]
    answers: tuple[str, ...]
    moved: float


@dataclass(frozen=True)
class Preview:
    """An edit beside the original and, where there is one, a model that never knew.

    Attributes:
        tokens: those that any of them finds likely, the original's order first.
        questions: shown prompts with their true answers.
    """

    prompt: str
    tokens: tuple[tuple[int, str], ...]
    questions: tuple[tuple[str, str], ...]
    before: Said
    after: Said
    gold: Said | None


class Bench:
    """A model with an SAE, on which edits are tried.

    One preview runs at a time: an edit stands in the model's hooks while it is measured.

    Args:
        golds: models that never knew: the first is shown beside, an audit takes all.

    Raises:
        SAEError: the SAE belongs to other weights.
    """

    def __init__(
        self,
        sae: Any,
        model: Any,
        target: Target | None = None,
        golds: Sequence[Any] = (),
        dashboards: Dashboards | None = None,
    ) -> None:
        require_fit(sae, model)
        self.sae, self.model, self.target, self.golds = sae, model, target, list(golds)
        if dashboards is not None and not isinstance(getattr(sae, "max_activation", None), Tensor):
            self.sae = copy.deepcopy(sae)
            peaks = torch.tensor(dashboards.overview["peak"].to_numpy(), device=sae.W_dec.device)
            self.sae.register_buffer("max_activation", peaks.to(sae.W_dec.dtype))
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, str], Said] = {}

    def edit(self, features: Sequence[int], kind: str, dose: float) -> Intervention:
        """The edit that a choice stands for.

        Raises:
            EditError: no such kind or feature, or none chosen.
        """
        if kind not in EDITS:
            raise EditError(f"edit {kind!r}: wanted one of {', '.join(EDITS)}")
        chosen = torch.tensor(sorted(set(features)), dtype=torch.long)
        if kind == "clamp":
            return Clamp(self.sae, chosen, dose=dose)
        if kind == "rescale":
            return Rescale(self.sae, chosen, scale=dose)
        pushes = [Steer.decoder(self.sae, int(i), dose) for i in chosen]
        if not pushes:
            raise EditError("no feature is chosen: choose one or more")
        return pushes[0] if len(pushes) == 1 else InTurn(tuple(pushes))

    @cached_property
    def facts(self) -> dict[str, list[Fact]]:
        """The facts that are asked, by kind."""
        if self.target is None:
            return {}
        kinds = {"S": self.target.fold("S") or self.target.forget}
        kinds |= {"R_va": self.target.retain["R_va"], **self.target.neighbours}
        return {
            name: list(facts if name == "S" else _spread(facts, ASKED))
            for name, facts in kinds.items()
            if facts
        }

    @property
    def prompt(self) -> str:
        """A prompt to begin with."""
        return ask(self.facts["S"][:1], "audit")[0].prompt if self.facts else ""

    def preview(self, edits: Sequence[Intervention], prompt: str) -> Preview:
        """What the edits change; what the unedited models say is kept for the next call.

        Raises:
            EditError: an empty prompt.
        """
        if not prompt.strip():
            raise EditError("the prompt is empty: wanted a text that the model is to go on with")
        with self._lock:
            before = self._unedited(self.model, prompt)
            gold = self._unedited(self.golds[0], prompt) if self.golds else None
            with edited(self.model, list(edits), must_fire=False):
                after = self._said(self.model, prompt)
        shown = [said.probs for said in (before, after, gold) if said is not None]
        ids = dict.fromkeys(int(i) for p in shown for i in p.topk(SHOWN_TOKENS).indices)
        names = [(i, self.model.tokenizer.decode([i])) for i in ids]
        questions = [(q.prompt, q.fact.object) for q in self._shown]
        return Preview(prompt, tuple(names), tuple(questions), before, after, gold)

    def wait(self) -> None:
        """Returns when no preview runs: a process must not end within one."""
        with self._lock:
            pass

    def audit(self, edits: Sequence[Intervention], cache: Any = None) -> AuditReport:
        """The quick audit of the edits, against all golds and two random controls."""
        if self.target is None:
            raise EditError("there is no target: an audit wants to know what was to be forgotten")
        config = AuditConfig("quick")
        with self._lock:
            return audit(
                self.model,
                list(edits),
                self.target,
                self.golds,
                config,
                controls=random_controls(edits, 2),
                cache=cache,
            )

    @cached_property
    def _shown(self) -> Sequence[Any]:
        return _spread(ask(self.facts["S"], "audit"), ANSWERS) if self.facts else []

    def _unedited(self, model: Any, prompt: str) -> Said:
        key = (id(model), prompt)
        if key not in self._kept:
            known = next((said for (who, _), said in self._kept.items() if who == key[0]), None)
            self._kept[key] = self._said(model, prompt, known)
        return self._kept[key]

    @torch.no_grad()
    def _said(self, model: Any, prompt: str, known: Said | None = None) -> Said:
        tokenizer, device = model.tokenizer, device_of(model)
        ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=device)
        probs = next_logits(model, ids)[0, -1].float().softmax(-1).cpu()
        if known is not None:
            return Said(probs, known.recall, known.answers, known.moved)
        if self.target is None:
            return Said(probs, {}, (), self._moved(model, [prompt]))
        world, recall = self.target.facts, {}
        for name, facts in self.facts.items():
            hits = answer(model, tokenizer, world, ask(facts, "audit")).hits
            recall[name] = hits.float().mean().item()
        found = answer(model, tokenizer, world, self._shown)
        best = zip(self._shown, found.logprobs.argmax(-1).tolist(), strict=True)
        answers = tuple(world.relation[q.fact.relation].candidates[i] for q, i in best)
        return Said(probs, recall, answers, self._moved(model, self._texts))

    @cached_property
    def _texts(self) -> list[str]:
        assert self.target is not None
        corpus = self.target.facts.corpus
        return [d.text for d in _spread(corpus, TEXTS) if not self.target.states_target(d)]

    def _logprobs(self, model: Any, texts: Sequence[str]) -> list[Tensor]:
        rows, found = self.model.tokenizer(list(texts))["input_ids"], []
        for batch in batches_by_length(rows):
            ids = torch.tensor([rows[i] for i in batch], device=device_of(model))
            found.append(next_logits(model, ids).float().log_softmax(-1).flatten(0, 1).cpu())
        return found

    @cached_property
    def _own_logprobs(self) -> list[Tensor]:
        return self._logprobs(self.model, self._texts)

    def _moved(self, model: Any, texts: Sequence[str]) -> float:
        if self.target is None:
            return float("nan")
        own = self._own_logprobs
        pairs = zip(own, self._logprobs(model, texts), strict=True)
        kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs])
        return kl.mean().item()


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly from the whole."""
    return list(items[:: max(1, -(-len(items) // most))])
