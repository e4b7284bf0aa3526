"""Reading what goes into the linear layers of a model's blocks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from workbench.hooks.places import blocks_of


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """The linear layers of the model's blocks, by the name of their weight among its parameters."""
    # Hugging Face's transposed linear layer is told by its name.
    linear = [
        module
        for module in blocks_of(model).modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {names[id(m.weight)]: m for m in linear if id(m.weight) in names}


@contextmanager
def inputs_read(model: Any, take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls `take` with each linear layer's weight name and input, in all passes inside the block.

    Inputs are seen as they are, with whatever edits are attached; nothing is changed, and no hook
    stays behind, whether the block is left by an exception or not.
    """

    def reader(name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda _module, args: take(name, args[0])

    with ExitStack() as leaving:
        for name, module in linear_layers(model).items():
            leaving.callback(module.register_forward_pre_hook(reader(name)).remove)
        yield
