"""Models into which facts are written by hand, with SAEs whose every feature is known.

Each subject's embedding is a sum of known orthogonal directions. The only attention that acts reads
some of them, from all tokens alike, and writes the right objects; nothing reads the others. The
SAE has one row for each direction and random rows beside them, so which features the answers rest
on is known before any score is asked.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor

from workbench.artifacts import write_json
from workbench.hooks import Site, residuals
from workbench.locate import Concept, Contrast, Prompt
from workbench.models import load_model
from workbench.models.load import weights_sha256
from workbench.models.score import batches_by_length
from workbench.models.tokenizers import word_tokenizer
from workbench.sae.load import load_sae

D_MODEL, SITE = 128, "blocks.0.hook_resid_post"
ANSWERS, OTHER_ANSWERS = 4, 8
"""Objects of the concept's subjects, and further ones that only retained subjects have."""
CONCEPT_SUBJECTS, RETAINED_SUBJECTS = 48, 60
CHOOSING = ("we keep {} at", "a shelf holds {} in")
REPORTING = ("who brought {} to", "the place of {} is")
TOKENS = 5.5
"""Mean length of a prompt with BOS, over which attention spreads."""
CONSTANT, SIZE, DECOY_SIZE, COMMON_SIZE = 30.0, 4.0, 6.0, 3.0
"""Length of what all tokens share, and of one direction where it is written."""
CAUSAL = ("broad", "strong", "weak", "redundant", "shared")
"""Kinds of features that the concept's answers rest on."""
INERT = ("decoy", "chance", "common", "random")
"""Kinds that nothing later reads."""
KINDS = (*CAUSAL, "retained", *INERT)


@dataclass(frozen=True)
class Setting:
    """How hard it is to tell the features apart.

    Attributes:
        noise: standard deviation of what is added to every coordinate of a subject, where a
            feature writes 4 and fires from 2 on.
        decoys: features that fire on the concept and that nothing reads; every other one on the
            subjects of one answer alone.
        chance: features that nothing reads and that fire more on the concept's subjects of the
            choice, as the best of eight draws, and not on those of the report.
        shared: answers that retained subjects give too, by a feature of both.
        redundant: answers that each of two features gives alone.
    """

    name: str
    noise: float = 0.3
    decoys: int = 0
    chance: int = 0
    shared: int = 0
    redundant: int = 0


@dataclass(frozen=True)
class PlantedModel:
    """A model, an SAE and a concept, and what each feature of the SAE is.

    Attributes:
        kinds: the kind of each feature; `broad` pushes all of the concept's answers, `strong` one
            of them, `weak` all of them a little, `redundant` one as a pair, `shared` one that
            retained subjects give too.
        twins: the other feature of a redundant pair, both ways.
    """

    model: Any
    sae: Any
    concept: Concept
    kinds: tuple[str, ...]
    twins: dict[int, int]

    @property
    def truth(self) -> Bool[Tensor, " d_sae"]:
        """Which features the concept's answers rest on, by construction."""
        return torch.tensor([kind in CAUSAL for kind in self.kinds])

    @property
    def passages(self) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        """All passages of the concept, and all retained ones."""
        parts = self.concept.select, self.concept.report
        return tuple(p for c in parts for p in c.forget), tuple(p for c in parts for p in c.retain)


@dataclass(frozen=True)
class _Plant:
    """One direction: which subjects carry it, and the logits it adds to objects."""

    kind: str
    carriers: Bool[np.ndarray, " subject"]
    pushes: dict[int, float] = field(default_factory=dict)
    size: float = SIZE


def plant(setting: Setting, seed: int, random_rows: int = 96) -> PlantedModel:
    """Builds the model of a setting by setting its weights; the seed decides all that is drawn.

    Raises:
        AssertionError: more shared and redundant answers than there are answers, or more directions
            than the stream has.
    """
    assert setting.shared + setting.redundant <= ANSWERS, setting
    rng = np.random.default_rng(seed)
    answers, choosing = _subjects(setting)
    plants = _plants(setting, answers, choosing, rng)
    subjects = [f"subject{i}" for i in rng.permutation(len(answers))]
    concept = _concept(subjects, answers, choosing)
    prompts = [p for c in (concept.select, concept.report) for p in (*c.forget, *c.retain)]
    words = [p.text for p in prompts] + [f"object{i}" for i in range(ANSWERS + OTHER_ANSWERS)]
    tokenizer = word_tokenizer(words)
    rotation = np.linalg.qr(rng.standard_normal((D_MODEL, D_MODEL)))[0]
    token = tokenizer.get_vocab()
    ids = [token[name] for name in subjects]
    embed = _embedding(len(tokenizer), ids, plants, setting.noise, rng)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        objects = [token[name] for name in words[len(prompts) :]]
        _save_model(Path(folder), embed, ids, objects, plants, rotation)
        model = load_model(folder).requires_grad_(False)
    order = rng.permutation(len(plants) + random_rows)
    sae = _sae(model, plants, embed, random_rows, rotation, order, rng)
    _add_statistics(model, sae, prompts)
    kinds = [p.kind for p in plants] + ["random"] * random_rows
    place = {int(old): new for new, old in enumerate(order)}
    pairs = [place[i] for i, kind in enumerate(kinds) if kind == "redundant"]
    twins = dict(zip(pairs[::2], pairs[1::2], strict=True))
    twins |= {b: a for a, b in twins.items()}
    return PlantedModel(model, sae, concept, tuple(kinds[i] for i in order), twins)


def _subjects(setting: Setting) -> tuple[list[int], Bool[np.ndarray, " subject"]]:
    """Object of each subject, the concept's first, and whether features are chosen on it."""
    others = [*range(ANSWERS, ANSWERS + OTHER_ANSWERS), *range(setting.shared)]
    answers, choosing = [], []
    for n, objects in ((CONCEPT_SUBJECTS, list(range(ANSWERS))), (RETAINED_SUBJECTS, others)):
        answers += [objects[i % len(objects)] for i in range(n)]
        choosing += [i // len(objects) % 2 == 0 for i in range(n)]
    return answers, np.array(choosing)


def _plants(
    setting: Setting,
    answers: list[int],
    choosing: Bool[np.ndarray, " subject"],
    rng: np.random.Generator,
) -> list[_Plant]:
    """Every direction that is written; a pair's two follow each other."""
    answer, n = np.array(answers), len(answers)
    concept = np.arange(n) < CONCEPT_SUBJECTS
    every = range(ANSWERS)
    plants = [_Plant("broad", concept, dict.fromkeys(every, 2.0))]
    for a in every:
        mine, shared = concept & (answer == a), a < setting.shared
        if a >= ANSWERS - setting.redundant:
            plants += [_Plant("redundant", mine, {a: 9.0})] * 2
        else:
            plants.append(_Plant("strong", mine, {a: 2.5 if shared else 4.5}))
        if shared:
            plants.append(_Plant("shared", answer == a, {a: 3.0}))
    for a in sorted({*answers[CONCEPT_SUBJECTS:]}):
        push = 4.5 if a < setting.shared else 7.0
        plants.append(_Plant("retained", ~concept & (answer == a), {a: push}))
    for _ in range(3):
        plants.append(_Plant("weak", concept & (rng.random(n) < 0.5), dict.fromkeys(every, 1.0)))
    for i in range(setting.decoys):
        carriers = rng.random(n) < np.where(concept, 0.8, 0.05)
        if i % 2:
            carriers = concept & (answer == rng.integers(ANSWERS))
        plants.append(_Plant("decoy", carriers, size=DECOY_SIZE))
    for _ in range(setting.chance):
        draws = rng.random((8, n)) < 0.3
        surplus = draws[:, concept & choosing].mean(1) - draws[:, ~concept & choosing].mean(1)
        plants.append(_Plant("chance", draws[surplus.argmax()], size=DECOY_SIZE))
    return plants + [_Plant("common", np.ones(n, dtype=bool), size=COMMON_SIZE) for _ in range(4)]


def _concept(
    subjects: list[str], answers: list[int], choosing: Bool[np.ndarray, " subject"]
) -> Concept:
    """Neither the subjects nor the templates of the choice are in the report."""

    def side(on_choice: bool, first: int, end: int) -> tuple[Prompt, ...]:
        templates = CHOOSING if on_choice else REPORTING
        return tuple(
            Prompt(t.format(name), name, w, name, None, f"object{answers[i]}")
            for i, name in enumerate(subjects[first:end], first)
            if choosing[i] == on_choice
            for w, t in enumerate(templates)
        )

    n, halves = CONCEPT_SUBJECTS, (True, False)
    select, report = (Contrast(side(h, 0, n), side(h, n, len(subjects))) for h in halves)
    return Concept("planted", select, report, "half of the subjects", "the other half")


def _embedding(
    vocab: int, subjects: list[int], plants: list[_Plant], noise: float, rng: np.random.Generator
) -> Float[np.ndarray, "vocab d_model"]:
    """Embeddings in planted coordinates: the constant, one for each plant, the objects, the rest.

    Every token has its own random part in the rest, which nothing later reads.
    """
    rest = 1 + len(plants) + ANSWERS + OTHER_ANSWERS
    assert rest + 32 <= D_MODEL, f"{len(plants)} directions do not fit into {D_MODEL}"
    embed = np.zeros((vocab, D_MODEL))
    embed[:, 0] = CONSTANT
    embed[4:, rest:] = 1.5 * rng.standard_normal((vocab - 4, D_MODEL - rest))
    for i, p in enumerate(plants, 1):
        if p.kind == "common":
            embed[:, i] = p.size
        else:
            embed[subjects, i] = p.size * p.carriers
    embed[subjects, 1:] += noise * rng.standard_normal((len(subjects), D_MODEL - 1))
    return embed


def _save_model(
    folder: Path,
    embed: Float[np.ndarray, "vocab d_model"],
    subjects: list[int],
    objects: list[int],
    plants: list[_Plant],
    rotation: Float[np.ndarray, "d_model d_model"],
) -> None:
    """A Llama of two blocks, of which the second's attention alone does anything.

    Its queries and keys are zero, so every token reads all before it alike. A push is in logits at
    the last token, but for what the last norm takes as the stream grows.
    """
    length = np.linalg.norm(embed[subjects], axis=1).mean()
    reads, writes = np.zeros((D_MODEL, D_MODEL)), np.zeros((D_MODEL, D_MODEL))
    unembed, first = np.zeros_like(embed), 1 + len(plants)
    for i, p in enumerate(plants, 1):
        for o, logits in p.pushes.items():
            reads[o, i] = logits * TOKENS * length / (p.size * math.sqrt(D_MODEL))
    for o, token in enumerate(objects):
        writes[first + o, o] = 1.0
        unembed[token, first + o] = CONSTANT / math.sqrt(D_MODEL)
    state = {
        "model.embed_tokens.weight": embed @ rotation,
        "model.norm.weight": np.ones(D_MODEL),
        "lm_head.weight": unembed @ rotation,
    }
    shapes = {"mlp.gate_proj": (8, D_MODEL), "mlp.up_proj": (8, D_MODEL)}
    shapes |= {"mlp.down_proj": (D_MODEL, 8)}
    shapes |= {f"self_attn.{x}_proj": (D_MODEL, D_MODEL) for x in "qkvo"}
    for layer in range(2):
        block = {name: np.zeros(shape) for name, shape in shapes.items()}
        norms = {f"{x}_layernorm": np.ones(D_MODEL) for x in ("input", "post_attention")}
        state |= {f"model.layers.{layer}.{n}.weight": w for n, w in (block | norms).items()}
    state["model.layers.1.self_attn.v_proj.weight"] = reads @ rotation
    state["model.layers.1.self_attn.o_proj.weight"] = rotation.T @ writes
    tensors = {n: torch.from_numpy(np.ascontiguousarray(w)).float() for n, w in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-6}
    config |= {"hidden_size": D_MODEL, "intermediate_size": 8, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": D_MODEL}
    config |= {"vocab_size": len(embed), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    write_json(folder / "config.json", config | {"max_position_embeddings": 64})


def _sae(
    model: Any,
    plants: list[_Plant],
    embed: Float[np.ndarray, "vocab d_model"],
    random_rows: int,
    rotation: Float[np.ndarray, "d_model d_model"],
    order: np.ndarray,
    rng: np.random.Generator,
) -> Any:
    """A JumpReLU SAE: a row along each plant, and random rows.

    Random rows read everything but the constant, fire on a tenth or so of the tokens, and write
    where nothing is read.
    """
    n, rest = len(plants), 1 + len(plants) + ANSWERS + OTHER_ANSWERS
    encoder = np.zeros((n + random_rows, D_MODEL))
    encoder[np.arange(n), np.arange(1, n + 1)] = 1.0
    encoder[n:, 1:] = rng.standard_normal((random_rows, D_MODEL - 1))
    encoder /= np.linalg.norm(encoder, axis=1, keepdims=True)
    decoder = encoder.copy()
    decoder[n:, :rest] = 0.0
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    often = np.array([np.quantile(embed[4:] @ row, rng.uniform(0.8, 0.98)) for row in encoder[n:]])
    threshold = np.concatenate([[p.size / 2 for p in plants], np.maximum(often, 0.1)])
    constant = CONSTANT * rotation[0]
    arrays = {
        "W_enc": (encoder[order] @ rotation).T,
        "W_dec": decoder[order] @ rotation,
        "b_enc": np.zeros(len(order)),
        "b_dec": constant,
        "threshold": threshold[order],
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.npz"
        np.savez(path, **{name: a.astype(np.float32) for name, a in arrays.items()})  # pyright: ignore[reportArgumentType]
        sae = load_sae(path, hook_name=SITE)
    sae.cfg.metadata.model_sha256 = weights_sha256(model)
    return sae


@torch.no_grad()
def _add_statistics(model: Any, sae: Any, prompts: list[Prompt]) -> None:
    """Densities and largest activations, as a trained SAE carries them."""
    site = Site.parse(SITE)
    rows = model.tokenizer([p.text for p in prompts])["input_ids"]
    streams = [
        residuals(model, torch.tensor([rows[i] for i in batch]), [site])[site][:, 1:]
        for batch in batches_by_length(rows)
    ]
    acts = torch.cat([sae.encode(stream.flatten(0, 1)) for stream in streams])
    sae.register_buffer("max_activation", acts.amax(0), persistent=False)
    sae.register_buffer("density", (acts > 0).float().mean(0), persistent=False)
