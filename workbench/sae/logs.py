"""Where the figures of a training can be sent, if the user asks; nothing is sent by default."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.errors import SAEError

Log = Callable[[int, dict[str, float]], None]


def wandb_log(project: str, **options: Any) -> Log:
    """Sends figures to Weights & Biases; options go to `wandb.init`.

    Raises:
        SAEError: wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise SAEError("wandb is not installed: pip install unlearning-workbench[wandb]") from error
    run = wandb.init(project=project, **options)
    return lambda step, figures: run.log(figures, step=step)


def tensorboard_log(folder: Path | str) -> Log:
    """Writes figures as TensorBoard events.

    Raises:
        SAEError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SAEError(
            "tensorboard is not installed: pip install unlearning-workbench[tensorboard]"
        ) from error
    writer = SummaryWriter(str(folder))

    def log(step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log
