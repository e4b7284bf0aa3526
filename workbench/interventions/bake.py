"""Edits folded into a model's weights, where weights can hold them, and proof that they do."""

import copy
from collections.abc import Sequence as Edits
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.artifacts import new_folder
from workbench.errors import EditError, SiteError
from workbench.hooks import Intervention, Site, edited, hook_point
from workbench.interventions.project import Project
from workbench.interventions.sequence import Sequence
from workbench.interventions.steer import Steer
from workbench.models import load_model

FIRST = Site(0, "resid_pre")


def bake(
    model: Any,
    edits: Intervention | Edits[Intervention],
    tokens: Int[Tensor, "batch pos"],
    atol: float = 1e-4,
) -> Any:
    """A copy of the model that does without hooks what the edits do; the model stays as it is.

    What weights can hold: steering by a constant at any site, in the bias of what writes there; a
    projection `everywhere`, in the embedding and in all that writes to the stream, which is exact
    since doing it twice is doing it once; and either before the first block, in the embedding. What
    depends on the token is refused: clamps, gates, orthogonal and capped steering. So is a
    projection at one inner site: the embedding and all earlier blocks go past it in the stream, and
    a change of them would change what those blocks read.

    Where a bias is needed and the model has none, all biases of its configuration's kind are added;
    others stay zero. Tied embeddings are untied where only the one for input changes.

    Args:
        model: from `load_model`.
        tokens: on which the copy's logits are compared with those of the edited model.
        atol: largest difference of a logit.

    Raises:
        EditError: an edit or a model for which there is no such copy, or one that differs.
        SiteError: the model has no such site.
    """
    parts = _parts(edits)
    if not hasattr(model, "blocks") or not hasattr(model, "original_model"):
        raise EditError(f"a {type(model).__name__}: wanted a model from load_model")
    for edit in parts:
        _require_constant(edit)
        hook_point(model, edit.site)
    baked = _copied(model)
    with torch.no_grad():
        _fold(baked, parts)
        with edited(model, parts):
            wanted = model(tokens)
        difference = float((baked(tokens) - wanted).abs().max())
    if not difference <= atol:
        raise EditError(
            f"the copy's logits differ by {difference:.2g} from those of the edited model, wanted "
            f"at most {atol:.2g}: this architecture does more than add up what its blocks write, "
            "or its numbers are too coarse"
        )
    return baked


def everywhere(project: Project, model: Any) -> list[Project]:
    """The projection wherever something has just been written to the stream."""
    sites = [FIRST]
    for layer in range(len(model.blocks)):
        sites += [Site(layer, "resid_mid")] * _has_mid(model, layer) + [Site(layer)]
    return [replace(project, site=site) for site in sites]


def save_baked(model: Any, folder: Path | str) -> Path:
    """Writes a model as a Hugging Face folder with its tokenizer, which `load_model` opens.

    Raises:
        DataError: `folder` holds what the workbench did not write.
    """
    original, weights = model.original_model, plain_weights(model)
    with new_folder(folder) as building:
        original.save_pretrained(building, state_dict=weights)
        model.tokenizer.save_pretrained(building)
    return Path(folder)


def plain_weights(model: Any) -> dict[str, Tensor]:
    """Weights under the names that the Hugging Face class of the model gives them.

    Raises:
        EditError: the class, built from the model's configuration, would have others.
    """
    original = model.original_model
    _join_attention(model)
    with torch.device("meta"):
        names = type(original)(original.config).state_dict()
    found = {
        name.replace("._original_component", ""): tensor
        for name, tensor in original.state_dict().items()
    }
    missing = [name for name, like in names.items() if _shape(found.get(name)) != _shape(like)]
    if missing:
        raise EditError(
            f"{type(original).__name__} has no weights of its configuration's name and shape for "
            f"{', '.join(missing[:3])}"
        )
    return {name: found[name] for name in names}


@torch.no_grad()
def _join_attention(model: Any) -> None:
    """Brings matrices that hold queries, keys and values together up to date.

    A bridge computes with three matrices of its own, split off when it was made; training changes
    these alone.
    """
    for block in model.blocks:
        joint = getattr(getattr(block, "attn", None), "qkv", None)
        if joint is None:
            continue
        joint, parts = joint.original_component, [getattr(block.attn, n) for n in "qkv"]
        for name in ("weight", "bias"):
            held = getattr(joint, name, None)
            if held is None:
                continue
            told = [getattr(part.original_component, name) for part in parts]
            found = torch.cat([t.T if t.ndim == 2 else t for t in told], dim=-1)
            if type(joint).__name__ == "Conv1D" and found.shape == held.shape:
                held.copy_(found)
            elif sorted(found.flatten().tolist()) != sorted(held.flatten().tolist()):
                raise EditError(
                    f"{type(model.original_model).__name__} keeps queries, keys and values in one "
                    "matrix, in an order that is not known here, and they were changed apart: "
                    "leave its attention as it is"
                )


def _copied(model: Any) -> Any:
    """The same model anew: a TransformerBridge that has run cannot be copied as it stands."""
    original = model.original_model
    with torch.random.fork_rng(devices=[]):
        plain = type(original)(copy.deepcopy(original.config)).to(original.dtype)
    plain.load_state_dict(plain_weights(model))
    plain.generation_config = copy.deepcopy(original.generation_config)
    device = str(next(original.parameters()).device)
    return load_model(plain.eval(), tokenizer=model.tokenizer, device=device)


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def _parts(edits: Intervention | Edits[Intervention]) -> list[Any]:
    """The edits, with those of sequences one by one."""
    given = list(edits) if isinstance(edits, Edits) else [edits]
    parts = [p for e in given for p in (_parts(e.edits) if isinstance(e, Sequence) else [e])]
    if not parts:
        raise EditError("no edit to fold into weights")
    return parts


def _fold(model: Any, edits: list[Any]) -> None:
    """Changes the weights of `model`."""
    if any(isinstance(edit, Project) and edit.site != FIRST for edit in edits):
        _require_everywhere(edits, model)
        _embed(model, edits[0])
        for block in model.blocks:
            for which in ("attn", "mlp"):
                _write(_writer(block, which), edits[0])
        return
    for edit in edits:
        site = edit.site
        if site == FIRST:
            _embed(model, edit)
        elif site.point == "resid_pre":
            _add_bias(model, site.layer - 1, "mlp", edit)
        else:
            _add_bias(model, site.layer, "mlp" if site.point == "resid_post" else "attn", edit)


def _require_constant(edit: Any) -> None:
    """Raises EditError if what an edit does cannot be said by weights."""
    if isinstance(edit, Steer) and edit.mode != "simple":
        raise EditError(
            f"{edit.mode} steering adds what depends on the token: wanted mode='simple'"
        )
    if not isinstance(edit, Steer | Project):
        raise EditError(
            f"a {type(edit).__name__} acts by what the token holds, which no weights of the model "
            "can say: wanted simple steering or a projection everywhere"
        )


def _require_everywhere(edits: list[Any], model: Any) -> None:
    """Raises EditError unless the edits are one projection wherever the stream is written to."""
    first = edits[0]
    same = all(
        isinstance(edit, Project)
        and all(torch.equal(getattr(edit, n), getattr(first, n)) for n in ("left", "right", "bias"))
        for edit in edits
    )
    if not same or {e.site for e in edits} != {e.site for e in everywhere(first, model)}:
        sites = ", ".join(sorted({edit.site.name for edit in edits}))
        raise EditError(
            f"edits at {sites}: a projection after the first block can be folded only as the same "
            "one at every site and with no other edit, since what has been written before goes "
            "past it; wanted everywhere(project, model)"
        )
    eye = torch.eye(first.rank, dtype=torch.float64, device=first.left.device)
    if not torch.allclose(first.right.double() @ first.left.double(), eye, atol=1e-5):
        raise EditError(
            "right · left is not the identity: doing it twice is not doing it once, so weights "
            "cannot hold it"
        )


def _has_mid(model: Any, layer: int) -> bool:
    try:
        hook_point(model, Site(layer, "resid_mid"))
    except SiteError:
        return False
    return True


def _linear(edit: Any, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """What an edit does to the difference of two streams."""
    return edit(rows) - edit(torch.zeros_like(rows))


def _embed(model: Any, edit: Any) -> None:
    """Has tokens embedded as the edit leaves them; of learned positions only what is linear."""
    embedding, unembedding = (m.original_component for m in (model.embed, model.unembed))
    if embedding.weight.data_ptr() == unembedding.weight.data_ptr():
        unembedding.weight = nn.Parameter(unembedding.weight.clone())
        model.original_model.config.tie_word_embeddings = False
    _replace(embedding, "weight", edit(embedding.weight.double()))
    if hasattr(model, "pos_embed"):
        positions = model.pos_embed.original_component
        _replace(positions, "weight", _linear(edit, positions.weight.double()))


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(value.to(old), requires_grad=old.requires_grad))


def _writer(block: Any, which: str) -> Any:
    """The last linear map of a block's attention or MLP, whose output is added to the stream."""
    name = {"attn": "o", "mlp": "out"}[which]
    bridge = getattr(getattr(block, which, None), name, None)
    found = getattr(bridge, "original_component", None)
    if not isinstance(getattr(found, "weight", None), Tensor):
        raise EditError(f"this model's {which} has no single matrix that writes to the stream")
    after = [n for n, _ in block.named_children() if n in ("ln1_post", "ln2_post")]
    if after:
        raise EditError(
            f"this model's blocks have {' and '.join(after)}: a norm stands between its matrices "
            "and the stream, so weights cannot hold what happens after it"
        )
    return found


def _write(writer: Any, edit: Any) -> None:
    """Has a linear map's output edited; what the edit adds as a constant is in the stream."""
    weight = writer.weight.double()
    # GPT-2's Conv1D keeps its weight transposed: an output of the map is a row.
    if type(writer).__name__ == "Conv1D":
        _replace(writer, "weight", _linear(edit, weight))
    else:
        _replace(writer, "weight", _linear(edit, weight.T).T)
    if writer.bias is not None:
        _replace(writer, "bias", _linear(edit, writer.bias.double()[None])[0])


def _add_bias(model: Any, layer: int, which: str, edit: Steer) -> None:
    """Adds steering to the bias of what writes to the stream there."""
    if _writer(model.blocks[layer], which).bias is None:
        _give_biases(model, which)
    writer = _writer(model.blocks[layer], which)
    _replace(writer, "bias", edit(writer.bias.double()))


def _give_biases(model: Any, which: str) -> None:
    """Gives zero biases to all linear maps of the attention or of the MLP, in every block.

    Raises:
        EditError: the model's class has no setting for them, so they would be lost when saved.
    """
    setting = {"attn": "attention_bias", "mlp": "mlp_bias"}[which]
    config = model.original_model.config
    if not hasattr(config, setting):
        raise EditError(
            f"{type(config).__name__} has no {setting}: a bias at the end of its "
            f"{which} would be lost when the model is saved, and nothing else there is constant"
        )
    setattr(config, setting, True)
    for block in model.blocks:
        for linear in getattr(block, which).modules():
            if isinstance(linear, nn.Linear) and linear.bias is None:
                zeros = linear.weight.new_zeros(linear.out_features)
                linear.bias = nn.Parameter(zeros)
    plain_weights(model)
