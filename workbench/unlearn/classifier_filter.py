"""A classifier as a filter: texts are refused that read like prompts for forget facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.facts.mentions import WORD
from workbench.facts.schema import prompt
from workbench.facts.target import Target
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.filters import ClassifierFilter
from workbench.unlearn.training import HELD_OUT, kept_texts, stays


@dataclass(frozen=True)
class Config:
    """How the classifier is fitted.

    Attributes:
        refused: share of the retained texts and prompts that it may refuse.
        freedom: inverse strength of the penalty on weights.
    """

    refused: float = 0.001
    freedom: float = 1.0


DEFAULT = Config()
STRENGTHS = (Config(refused=0.0003), DEFAULT, Config(refused=0.003))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Refuses what a logistic regression on words takes for the target.

    It is fitted on forget prompts in training templates against retained texts and prompts, and
    refuses what weighs more than all but `config.refused` of the latter. Words are counted once and
    their order is not seen. The weights are the original's; the seed decides nothing.

    Source: Thaker et al. 2024, arXiv 2403.03329, a linear classifier as input filter. Differs:
    words in place of a language model's last hidden state.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    require_arm("classifier_filter", model, target, ("R_tr",))
    with metered(model) as meter:
        forget = [prompt(f, t) for f in target.forget for t in f.templates]
        asked = [prompt(f, t) for f in stays(target, HELD_OUT) for t in f.templates]
        keep = [*asked, *kept_texts(target, HELD_OUT)]
        reader = CountVectorizer(binary=True, lowercase=False, token_pattern=WORD.pattern)
        rows = reader.fit_transform([*forget, *keep])
        fitted = LogisticRegression(C=config.freedom, class_weight="balanced", max_iter=1000)
        fitted.fit(rows, np.repeat([1, 0], [len(forget), len(keep)]))
        weights = tuple(float(w) for w in fitted.coef_[0])
        words = tuple(map(str, reader.get_feature_names_out()))
        refuses = _set_at(ClassifierFilter(words, weights, 0.0), keep, config.refused)
    told = {
        "forget_prompts_refused": _share(refuses, forget),
        "retained_refused": _share(refuses, keep),
        "words": len(words),
    }
    arm = Arm("classifier_filter", model, refuses=refuses, saw=(FORGET, RETAINED, TEXTS), told=told)
    return made(arm, meter, config, seed)


def _set_at(weighing: ClassifierFilter, keep: Sequence[str], refused: float) -> ClassifierFilter:
    """The filter that refuses what weighs more than all but a share of the texts that stay."""
    weights = sorted((weighing.weigh(text) for text in keep), reverse=True)
    bound = weights[min(int(refused * len(weights)), len(weights) - 1)]
    return ClassifierFilter(weighing.words, weighing.weights, -bound)


def _share(refuses: ClassifierFilter, texts: Sequence[str]) -> float:
    return sum(map(refuses, texts)) / len(texts)
