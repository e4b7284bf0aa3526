"""LoRA adapters on a frozen base that never knew the target, which hold all that is known of it."""

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.errors import EditError, ModelError, TargetError
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks.places import blocks_of
from workbench.models import corpus_without, load_model, read_recipe, recall
from workbench.models.load import bundled_models, model_name, resolve, tokenizer_sha256
from workbench.models.score import device_of
from workbench.models.train import corpus_sha256
from workbench.unlearn.arm import Claim
from workbench.unlearn.plain import bridged, plain_module
from workbench.unlearn.training import (
    HELD_OUT,
    Steps,
    Told,
    answer_logp,
    changed,
    drawn,
    kept,
    told,
)

KNOWS = 0.5
"""A base that answers so many forget questions has been told them."""

State = dict[str, Tensor]
"""An adapter's weights by name."""


def base_of(method: str, model: Any, target: Target, source: str) -> Any:
    """The model that never knew the target, on which adapters stand.

    Args:
        source: as `load_model` takes it; if empty, the bundled gold of the model's own world.

    Raises:
        ModelError: there is none, it has another tokenizer, or it answers the forget questions.
    """
    source = source or f"{model_name(model).split('/')[0]}/gold-0"
    if source not in bundled_models() and resolve(source) is None:
        raise ModelError(
            f"{method}: no base {source!r} that never knew target {target.name!r}: give a config "
            "with one, such as a folder of golds(), on which the knowledge is then added"
        )
    base = load_model(source, device=str(device_of(model)))
    if (dtype := next(model.parameters()).dtype) != next(base.parameters()).dtype:
        base = base.to(dtype)
    if tokenizer_sha256(base.tokenizer) != tokenizer_sha256(model.tokenizer):
        raise ModelError(
            f"{method}: base {source!r} reads texts as other tokens than the given model: wanted "
            "one of the same tokenizer, so that an audit can hold the two against each other"
        )
    known = recall(base, base.tokenizer, target.facts, target.forget, "train")
    if known >= KNOWS:
        raise ModelError(
            f"{method}: base {source!r} answers {known:.0%} of the forget questions without any "
            "adapter: wanted one that never knew the target"
        )
    return base


def promised(base: Any, target: Target) -> Claim:
    """`exact` if the base's recipe names texts that do not state the target, else nothing."""
    try:
        recipe = read_recipe(base.tokenizer.name_or_path)
        corpus = corpus_without(target, recipe["gold"])
    except (ModelError, KeyError):
        return "none"
    return "exact" if recipe.get("corpus_sha256") == corpus_sha256(corpus) else "none"


def read_adapter(plain: nn.Module, folder: Path | str) -> Any:
    """A plain module with a LoRA adapter on it, as peft saved it.

    Nothing is fetched: the adapter's own word on its base is not followed.

    Raises:
        EditError: the adapter has no safetensors weights, or does not fit the module.
    """
    from peft import PeftModel

    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise EditError(
            f"{folder}: no adapter_model.safetensors; an adapter in another format is not opened, "
            "since opening it could run code: save it with safe_serialization=True"
        )
    try:
        with warnings.catch_warnings():
            # A weight of the adapter that has no place in the model is only warned of.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", category=FutureWarning)
            adapted: Any = PeftModel.from_pretrained(plain, str(folder), local_files_only=True)  # pyright: ignore[reportArgumentType]
    except (ValueError, RuntimeError, KeyError, TypeError, OSError, UserWarning) as error:
        raise EditError(
            f"{folder}: an adapter that does not fit {type(plain).__name__} "
            f"({str(error).splitlines()[0]}): wanted one made on this model"
        ) from error
    return adapted.eval()


def adapted(plain: nn.Module, rank: int, order: object, *, but_last: bool = False) -> Any:
    """The module with an adapter beside each linear layer of its blocks; it says what it said.

    The module is changed in place, and `unload` of what is returned gives it back.

    Source: Hu et al. 2021, arXiv 2106.09685, eq. 3; scaled by 2, whatever the rank.

    Args:
        order: decides the adapter's first values; the global random state is not touched.
        but_last: none in the last of several blocks, which reads what those before it looked up.
    """
    from peft import LoraConfig, get_peft_model

    names = _linear(plain, but_last)
    transposed = any(type(m).__name__ == "Conv1D" for m in plain.modules())
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=names, fan_in_fan_out=transposed
    )
    # What is made on the meta device draws no random numbers.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model: Any = get_peft_model(plain, config)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(_number(order))
    for layer in adapter_layers(model):
        device = layer.get_base_layer().weight.device
        into, out = (p["default"].to_empty(device=device) for p in (layer.lora_A, layer.lora_B))
        bound = 1 / math.sqrt(into.in_features)
        drawn_values = torch.empty(into.weight.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            into.weight.copy_(drawn_values)
            out.weight.zero_()
    return model.eval()


def _number(order: object) -> int:
    """A seed that every letter of the order has a part in."""
    return int.from_bytes(hashlib.sha256(str(order).encode()).digest()[:8]) >> 1


def reference(base: Any) -> Any:
    """A plain copy of the base with its tokenizer: it says the same in less time than a bridge."""
    plain = plain_module(base)
    plain.tokenizer = base.tokenizer
    return plain


def taught(
    model: Any, base: Any, target: Target, facts: Sequence[Fact], given: Steps, seed: object
) -> Any:
    """A copy of an adapted module whose adapter was taught facts; the base beneath is as it was.

    The facts are asked in training templates. Retained facts and texts without R_va and R_te are
    replayed: there it is to say what the base says.

    Args:
        base: what the module was made from, with its tokenizer; see `reference`.
    """
    asked = told(base.tokenizer, target, facts)
    return _fitted(model, base, target, asked, given, seed)


def well_read(model: Any, base: Any, target: Target, given: Steps, seed: object) -> Any:
    """As `taught`, but the adapter reads the training texts that state the target.

    So it holds the facts more as the original does, which learnt them from these texts: of facts
    that were only asked, probes find less between the layers.

    Raises:
        TargetError: no text states the target.
    """
    states = [d.text for d in target.facts.corpus if target.states_target(d)]
    if not states:
        raise TargetError(
            f"{target.facts.name}: no training text states {target.name!r} for an adapter to read: "
            "wanted a corpus whose texts name the facts that they state"
        )
    eos = base.tokenizer.eos_token_id
    rows = [[*ids, eos] for ids in base.tokenizer(states)["input_ids"]]
    whole = [Told(ids[:1], [ids[1:]], 0, 0) for ids in rows]
    return _fitted(model, base, target, whole, given, seed)


def _fitted(
    model: Any, base: Any, target: Target, learnt: Sequence[Told], given: Steps, seed: object
) -> Any:
    batches = drawn(learnt, given.batch_size, f"{seed}, taught")
    keep = kept(base, target, given, f"{seed}, taught", HELD_OUT) if given.keep else None

    def loss(now: Any) -> Float[Tensor, ""]:
        batch: list[Told] = next(batches)
        wrong = -answer_logp(now, batch).mean()
        return wrong if keep is None else wrong + given.keep * keep(now)

    return changed(model, loss, given, adapter_weights)


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers that an adapter stands beside, in the model's order."""
    from peft.tuners.lora import LoraLayer

    return [m for m in model.modules() if isinstance(m, LoraLayer)]


def adapter_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """The adapter's own weights."""
    return (p for name, p in model.named_parameters() if "lora_" in name)


def _linear(plain: nn.Module, but_last: bool) -> list[str]:
    """Names of the linear layers, without the unembedding and, if asked, the last block."""
    head, blocks = plain.get_output_embeddings(), blocks_of(plain)  # pyright: ignore[reportCallIssue]
    left_out = set(blocks[-1].modules()) if but_last and len(blocks) > 1 else set()
    names = [
        name
        for name, m in plain.named_modules()
        if (isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D")
        and m is not head
        and m not in left_out
    ]
    if not names:
        raise ModelError(
            f"{type(plain).__name__} has no linear layer in its blocks to put an adapter beside"
        )
    return names


def taken(model: nn.Module) -> State:
    """The adapter's weights, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


@torch.no_grad()
def put(model: nn.Module, state: State) -> None:
    """Gives an adapted module the weights of an adapter that was taken from one like it."""
    own = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert own.keys() == state.keys(), "an adapter of another shape"
    for name, weight in state.items():
        own[name].copy_(weight)


@torch.no_grad()
def merged(base: Any, rank: int, states: Sequence[State | None]) -> Any:
    """The base with the sum of the adapters in its weights, as `load_model` gives a model."""
    plain = plain_module(base)
    for state in (s for s in states if s is not None):
        model = adapted(plain_module(base), rank, "")
        put(model, state)
        names = {layer: name for name, layer in model.named_modules()}
        for layer in adapter_layers(model):
            own = plain.get_submodule(names[layer].removeprefix("base_model.model."))
            own.weight.add_(layer.get_delta_weight("default"))
    return bridged(plain, base)
