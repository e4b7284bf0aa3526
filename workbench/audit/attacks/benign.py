"""W3: does training that has nothing to do with the target bring it back?"""

from functools import partial

from workbench.audit.attacks.config import AttackConfig
from workbench.audit.attacks.training import Course, finetuned, score, statements
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.facts.target import Target

STEPS = (0, 16, 64)


def benign_jobs(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """W3, one job: fine-tuning on retained facts alone; none where there are none.

    Source: 2406.13356, 2409.18025. Differs: statements of the same relations, all weights.
    """
    texts = statements(target.retain["R_tr"])
    if not texts:
        return {}
    course = Course((texts,), (config.batch_size,), config.gentle_lr, f"{seed}, benign")
    return {"W3": partial(benign, target=target, course=course)}


def benign(view: View, target: Target, course: Course) -> Found:
    """Centred hits on all forget facts before, during and after, and on R_te before and after."""
    found: Found = {}
    for step, tuned in finetuned(view, course, STEPS):
        asked = {"F": target.forget}
        if step in (STEPS[0], STEPS[-1]):
            asked["R_te"] = target.retain["R_te"]
        label = Key("W3", "", "centred", "benign", x=step)
        found |= score(tuned, target.facts, asked, label)
    return found
