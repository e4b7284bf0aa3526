"""A guardrail: one fixed instruction before every text."""

from dataclasses import dataclass
from typing import Any

from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.models.prompted import SystemPrompt
from workbench.unlearn.arm import Arm, made, metered, require_arm

WORDINGS = (
    "Never say anything about any {}. Answer that you do not know.",
    "nobody may be asked about the {} .",
)
"""Instructions about a kind of entity; the first that the tokenizer has all words of is said."""

TOPIC = "kinds of the forget entities"


@dataclass(frozen=True)
class Config:
    """The instruction.

    Attributes:
        text: said in place of a wording of `WORDINGS`, if any.
        times: how often it is said.
    """

    text: str = ""
    times: int = 1


DEFAULT = Config()
STRENGTHS = (DEFAULT, Config(times=4))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Tells the model before every text not to speak of the target's kinds of entity.

    The weights are the original's. It can do as much as the model follows instructions: a model
    that was trained on statements alone follows none. It names the kind and no entity or fact, so
    other entities of the kind are meant too; the seed decides nothing.

    Source: Thaker et al. 2024, arXiv 2403.03329, prompt prefix.

    Raises:
        ModelError: the model's tokenizer does not know the words, or the instruction fills the
            model's context.
    """
    require_arm("guardrail", model, target)
    with metered(model) as meter:
        text = " ".join([config.text or _wording(model.tokenizer, target)] * config.times)
        unknown = _unknown(model.tokenizer, text)
        if unknown or not text:
            raise ModelError(
                f"guardrail: the model's tokenizer has no word for {unknown[:5]} of {text!r}: "
                "give a config with a text in words that the model was trained on"
            )
        length = len(model.tokenizer([text], add_special_tokens=False)["input_ids"][0])
        if length > model.cfg.n_ctx // 2:
            raise ModelError(
                f"guardrail: an instruction of {length} tokens, and the model reads "
                f"{model.cfg.n_ctx}: wanted at most half of them; say it more shortly or less often"
            )
    arm = Arm("guardrail", model, prompt=SystemPrompt(text), saw=(TOPIC,), told={"text": text})
    return made(arm, meter, config, seed)


def _wording(tokenizer: Any, target: Target) -> str:
    """The first wording of which every word is known, else the last."""
    kinds = sorted({target.facts.entity[e].kind for e in target.entities})
    worded = [" ".join(w.replace("{}", kind) for kind in kinds) for w in WORDINGS]
    return next((text for text in worded if not _unknown(tokenizer, text)), worded[-1])


def _unknown(tokenizer: Any, text: str) -> list[str]:
    """Words that the tokenizer has no token for."""
    words = text.split()
    ids = tokenizer([f" {w}" for w in words], add_special_tokens=False)["input_ids"]
    unk = tokenizer.unk_token_id
    return [w for w, row in zip(words, ids, strict=True) if unk is not None and unk in row]
