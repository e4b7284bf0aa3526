"""Where a site is in a TransformerBridge, a HookedTransformer or a Hugging Face module."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.errors import SiteError
from workbench.hooks.sites import Point, Site

PRE_MLP_NORMS = ("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm")
"""Names of the norm before a Hugging Face block's MLP, the surer ones first."""

WITHOUT_MID = (
    "use_parallel_residual",
    "parallel_attn",
    "apply_residual_connection_post_layernorm",
    "mlp_alpha_factor",
)
"""Settings under which the MLP's input is not the stream, or is not added to it."""


@dataclass(frozen=True)
class Place:
    """A module whose output or first input is the residual stream.

    Attributes:
        rejoins: where the change made here has to be added once more, since what goes around the
            MLP has already left the stream; None where all that follows reads this place.
    """

    module: nn.Module
    side: Literal["output", "input"] = "output"
    rejoins: "Place | None" = None

    def attach(
        self, function: Callable[[Tensor], Tensor | None], *, prepend: bool = False
    ) -> RemovableHandle:
        """Calls `function` with the stream in every forward pass; what it returns replaces it."""
        if self.side == "input":

            def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
                changed = function(args[0] if args else kwargs["hidden_states"])
                if changed is None:
                    return None
                if args:
                    return (changed, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": changed}

            return self.module.register_forward_pre_hook(before, with_kwargs=True, prepend=prepend)

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            whole = isinstance(output, tuple)
            changed = function(output[0] if whole else output)
            return (changed, *output[1:]) if whole and changed is not None else changed

        return self.module.register_forward_hook(after, prepend=prepend)


def hook_point(model: Any, site: Site) -> Place:
    """Where the residual stream at `site` can be read and changed.

    Raises:
        SiteError: the model has no such layer or point; near sites are named.
    """
    blocks = blocks_of(model)
    if site.point not in get_args(Point):
        near = difflib.get_close_matches(str(site.point), get_args(Point)) or get_args(Point)
        raise SiteError(
            f"{site.name}: this model's blocks have no {site.point}; near: {', '.join(near)}"
        )
    if not 0 <= site.layer < len(blocks):
        nearest = Site(min(max(site.layer, 0), len(blocks) - 1), site.point)
        raise SiteError(
            f"{site.name}: the model has layers 0 to {len(blocks) - 1}; nearest: {nearest.name}"
        )
    block = blocks[site.layer]
    return _lens_place(block, site) if _is_lens(model) else _plain_place(block, site)


def blocks_of(model: Any) -> Any:
    """The model's transformer blocks, in order."""
    return model.blocks if _is_lens(model) else _layers(model)[1]


def watched_at(model: Any, site: Site) -> nn.Module:
    """The module around `site` whose call takes the key-value cache and the attention mask."""
    if _is_lens(model) and not hasattr(model, "original_model"):
        # HookedTransformer.generate goes round the model's own call.
        return model.blocks[site.layer]
    return _layers(getattr(model, "original_model", model))[0]


def _is_lens(model: Any) -> bool:
    """Whether a model has TransformerLens' hook points."""
    return hasattr(model, "blocks") and hasattr(model.blocks[0], "hook_resid_pre")


def _lens_place(block: Any, site: Site) -> Place:
    module = getattr(block, f"hook_{site.point}", None)
    if not isinstance(module, nn.Module):
        raise _no_mid(site)
    if site.point != "resid_mid" or "hook_resid_mid" in dict(block.named_children()):
        return Place(module)
    # A TransformerBridge reads resid_mid at the input of the block's second norm.
    if getattr(block, "mlp_reads_resid_directly", False):
        raise _no_mid(site)
    return Place(module, rejoins=Place(block.hook_resid_post))


def _plain_place(block: nn.Module, site: Site) -> Place:
    if site.point == "resid_pre":
        return Place(block, "input")
    if site.point == "resid_post":
        return Place(block)
    children = dict(block.named_children())
    norm = next((children[name] for name in PRE_MLP_NORMS if name in children), None)
    after_mlp = "post_feedforward_layernorm" in children
    if norm is None or (after_mlp and "pre_feedforward_layernorm" not in children):
        raise _no_mid(site)
    config = getattr(block, "config", None) or getattr(children.get("self_attn"), "config", None)
    if any(getattr(holder, name, False) for holder in (block, config) for name in WITHOUT_MID):
        raise _no_mid(site)
    return Place(norm, "input", rejoins=Place(block))


def _no_mid(site: Site) -> SiteError:
    near = Site(site.layer, "resid_pre").name, Site(site.layer).name
    return SiteError(
        f"{site.name}: this model's blocks have no {site.point}, since no norm before the MLP "
        f"reads the stream there; near: {', '.join(near)}"
    )


def _layers(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """A Hugging Face model's blocks, and the module that they stand in."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    text = next((c for c in map(_text_config, modules.values()) if c is not None), None)
    count = getattr(text, "num_hidden_layers", None)
    fitting = [
        (modules[name.rpartition(".")[0]], module)
        for name, module in modules.items()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not fitting:
        raise SiteError(
            f"{type(model).__name__} has no `blocks` and no list of as many modules as its config "
            "has layers: wanted a TransformerBridge, a HookedTransformer or a Hugging Face model"
        )
    # A model of images and text may have as many blocks for the one as for the other.
    return next((f for f in fitting if getattr(f[0], "config", None) is text), fitting[0])


def _text_config(module: nn.Module) -> Any:
    config: Any = getattr(module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return text if hasattr(text, "num_hidden_layers") else None
