"""A way of unlearning of your own: one file with one function.

    workbench compare toxins --methods no_change --own notebooks/own_arm.py

`unlearn` is given the model, the target, one of `STRENGTHS` and a seed, and returns an `Arm`. It
must not change the model that it is given, and it is shown what every method is shown: forget facts
in their training templates, and what is to stay without the folds on which it is judged
(`descended` sees to both). `DEFAULT` and `STRENGTHS` may be left out.

The idea here: be at a loss. The answer to a forget prompt is drawn to a tie of all candidates.
"""

from dataclasses import replace

import torch

from workbench.unlearn import Arm
from workbench.unlearn.descent import DescentConfig, descended
from workbench.unlearn.training import Steps, prompts

DEFAULT = DescentConfig(Steps(120, 1e-3, keep=6.0, near=2))
STRENGTHS = (replace(DEFAULT, weight=0.3), DEFAULT)


def unlearn(model, target, config=DEFAULT, seed=0) -> Arm:
    def forget(now, batch):
        device = next(now.parameters()).device
        logits = now(prompts(batch, device))[:, -1].float()
        losses = []
        for row, told in zip(logits, batch, strict=True):
            candidates = torch.tensor([tokens[0] for tokens in told.answers], device=device)
            losses.append(-row.log_softmax(-1)[candidates].mean())
        return torch.stack(losses).mean()

    return descended("own_arm", model, target, config, seed, forget)
