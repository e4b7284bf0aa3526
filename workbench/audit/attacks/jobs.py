"""The attacks of the battery, as jobs that run one by one."""

from workbench.audit.attacks.benign import benign_jobs
from workbench.audit.attacks.config import AttackConfig
from workbench.audit.attacks.direction import direction_jobs
from workbench.audit.attacks.noise import noise_jobs
from workbench.audit.attacks.prefix import prefix_jobs
from workbench.audit.attacks.prune import prune_jobs
from workbench.audit.attacks.quantise import quantise_jobs
from workbench.audit.attacks.relearn import adapter_jobs, relearn_jobs
from workbench.audit.attacks.savings import savings_jobs
from workbench.audit.attacks.soft import soft_jobs
from workbench.audit.views import Measure
from workbench.errors import AuditError
from workbench.facts.target import Target

MAKERS = {
    "W1": relearn_jobs,
    "W2": savings_jobs,
    "W3": benign_jobs,
    "W4": adapter_jobs,
    "W5": quantise_jobs,
    "W6": prune_jobs,
    "W7": noise_jobs,
    "W8": direction_jobs,
    "W9": soft_jobs,
    "W10": prefix_jobs,
}


def attacks(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """One job for each run that the config asks for and the target has the facts for.

    Each gives centred hits per question on audit-only templates. Only W2 sees an object of a fact
    of V or S. An attack meets the weights and the edits, never the output filter.

    Args:
        seed: decides the order of the texts, what adapters and prompts start from, and the noise.

    Raises:
        AuditError: an attack of another name.
    """
    if unknown := [name for name in config.names if name not in MAKERS]:
        raise AuditError(f"attacks {unknown}: wanted some of {list(MAKERS)}")
    return {
        job: measure
        for name in config.names
        for job, measure in MAKERS[name](target, config, seed).items()
    }
