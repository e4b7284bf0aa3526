"""Training small language models from scratch on a fact set, so that what they know is known."""

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.artifacts import new_folder, require_replaceable, write_json
from workbench.errors import ModelError
from workbench.facts.schema import Document, Fact, FactSet
from workbench.models.load import without_progress_bars
from workbench.models.score import recall
from workbench.models.tokenizers import byte_pair_tokenizer, word_tokenizer

CHECK_EVERY = 2
RECALL_SAMPLE = 600


@dataclass(frozen=True)
class LMConfig:
    """A small Llama-type model and how it is trained.

    Attributes:
        epochs: length of the cosine schedule; training ends sooner once `stop_at_recall` is
            reached.
        stop_at_recall: recall on a sample of training prompts, checked every second epoch; 2 never
            stops.
        tokenizer: `word` (one token per word) or `byte_pair`.
        forms: forms of text to train on (`statement`, `neutral`); empty means all of them.
    """

    d_model: int = 128
    n_layers: int = 4
    epochs: int = 14
    batch_size: int = 128
    lr: float = 2e-3
    stop_at_recall: float = 0.999
    tokenizer: str = "word"
    forms: tuple[str, ...] = ()
    seed: int = 0


def train_lm(
    facts: FactSet,
    out: Path | str,
    config: LMConfig | None = None,
    *,
    corpus: Sequence[Document] | None = None,
    stop_epoch: int | None = None,
    recipe: dict[str, Any] | None = None,
    trunk: Path | None = None,
) -> Path:
    """Trains a model on the fact set's corpus; saves it as a Hugging Face folder with a recipe.

    The same arguments give the same weights on one machine. A run that was interrupted goes on from
    its last whole epoch when called again with the same arguments; `out` appears only when training
    is complete.

    Args:
        corpus: texts to train on in place of `facts.corpus` (a gold model's), tokenized as the
            facts' own corpus is.
        stop_epoch: train exactly so many epochs of the schedule, whatever the recall.
        recipe: further entries for `recipe.json`.
        trunk: state that `train_trunk` left, from which training goes on; its config may differ in
            the seed alone.

    Raises:
        DataError: `out` holds what the workbench did not write.
    """
    config = config or LMConfig()
    out, given = Path(out), facts.corpus if corpus is None else corpus
    require_replaceable(out)
    run = _prepare(facts, config, given)
    made_from = {
        "config": asdict(config),
        "corpus_sha256": corpus_sha256(given),
        "stop_epoch": stop_epoch,
    }
    epochs_run = _fit(run, _checkpoint_path(out), made_from, stop_epoch, trunk)
    model, tokenizer = run.model, run.tokenizer
    measured = recall(model, tokenizer, facts, run.known, "train")
    with new_folder(out) as folder, without_progress_bars():
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(
            folder / "recipe.json",
            {
                **made_from,
                "epochs_run": epochs_run,
                "facts": facts.name,
                "n_texts": len(run.rows),
                "recall_train_templates": measured,
                "torch": torch.__version__,
                **(recipe or {}),
            },
        )
    _checkpoint_path(out).unlink(missing_ok=True)
    return out


def train_trunk(
    facts: FactSet, state: Path, config: LMConfig, corpus: Sequence[Document], epochs: int
) -> Path:
    """Trains the first epochs of a run, from which several runs can go on.

    They then share these epochs to the bit: weights, optimizer and place in the schedule.

    Args:
        state: file for the state; one that the same arguments left is not made again.
        epochs: how many of `config.epochs`, 1 or more.

    Returns:
        `state`, as `train_lm` takes it for its `trunk`.
    """
    run = _prepare(facts, config, corpus)
    made_from = {
        "config": asdict(config),
        "corpus_sha256": corpus_sha256(corpus),
        "stop_epoch": epochs,
    }
    _fit(run, state, made_from, epochs, None)
    return state


def trunk_sha256(state: Path) -> str:
    """Hash of the weights that a trunk ends with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(torch.load(state, weights_only=True)["model"].items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def corpus_sha256(corpus: Sequence[Document]) -> str:
    """Hash of the training texts, in their order, and of what they state."""
    content = [[d.text, d.states] for d in corpus]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def lm_loss(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"], pad: int
) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy in nats over all tokens that are not padding."""
    labels = tokens[:, 1:].masked_fill(tokens[:, 1:] == pad, -100)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten())


def epoch_batches(
    rows: Sequence[Sequence[int]], size: int, pad: int, seed: int
) -> list[Int[Tensor, "batch pos"]]:
    """All rows once, in an order that depends on the seed alone.

    Rows of similar length share a batch to save padding.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(rows)), len(rows))
    pools = [
        sorted(order[i : i + 16 * size], key=lambda j: len(rows[j]))
        for i in range(0, len(order), 16 * size)
    ]
    batches = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    rng.shuffle(batches)
    return [pad_rows([rows[j] for j in batch], pad) for batch in batches]


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> Int[Tensor, "batch pos"]:
    """The rows as one tensor, each filled up with `pad` to the length of the longest."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


def _tokenizer(facts: FactSet, config: LMConfig) -> Any:
    texts = [d.text for d in facts.corpus]
    if config.tokenizer == "byte_pair":
        return byte_pair_tokenizer(texts)
    if config.tokenizer != "word":
        raise ModelError(f"tokenizer {config.tokenizer!r}: wanted 'word' or 'byte_pair'")
    asked = [
        f"{t} {f.subject} {f.object}"
        for f in facts.facts
        for t in (*f.templates, *f.audit_templates)
    ]
    return word_tokenizer([*texts, *asked, *facts.neutral])


def _new_model(config: LMConfig, vocab: int, tokenizer: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=config.d_model,
            intermediate_size=4 * config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


@dataclass(frozen=True)
class _Run:
    """A model before its first epoch, and the rows of tokens it is to learn."""

    facts: FactSet
    config: LMConfig
    tokenizer: Any
    model: Any
    rows: list[list[int]]
    known: list[Fact]


def _prepare(facts: FactSet, config: LMConfig, given: Sequence[Document]) -> _Run:
    corpus = [d for d in given if not config.forms or d.form in config.forms]
    tokenizer = _tokenizer(facts, config)
    torch.manual_seed(config.seed)
    model = _new_model(config, len(tokenizer), tokenizer)
    rows = [
        [*ids, tokenizer.eos_token_id] for ids in tokenizer([d.text for d in corpus])["input_ids"]
    ]
    told = {key for d in corpus for key in d.states}
    return _Run(facts, config, tokenizer, model, rows, [f for f in facts.facts if f.key in told])


def _fit(
    run: _Run,
    checkpoint: Path,
    made_from: dict[str, Any],
    stop_epoch: int | None,
    trunk: Path | None,
) -> int:
    model, config, rows, pad = run.model, run.config, run.rows, run.tokenizer.pad_token_id
    per_epoch = math.ceil(len(rows) / config.batch_size)
    total, warmup = config.epochs * per_epoch, min(100, per_epoch)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=0.01, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(
            (s + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, s / total)))
        ),
    )
    sample = random.Random(config.seed).sample(run.known, min(RECALL_SAMPLE, len(run.known)))
    state = {"model": model, "optimizer": optimizer, "schedule": schedule}
    made_from = {**made_from, "vocabulary": run.tokenizer.get_vocab()}
    if trunk is not None:
        made_from["trunk"] = trunk_sha256(trunk)
    epoch = _resume(state, checkpoint, made_from)
    if trunk is not None and epoch == 0:
        epoch = _load_state(state, torch.load(trunk, weights_only=True))
    last = config.epochs if stop_epoch is None else min(config.epochs, stop_epoch)
    progress = tqdm(
        total=total,
        initial=epoch * per_epoch,
        desc=f"train {checkpoint.name.removeprefix('.').split('.')[0]}",
        unit="step",
        leave=False,
    )

    def learned() -> bool:
        """Asked of the weights alone, so that a resumed run ends as it would have."""
        if stop_epoch is not None or epoch == 0 or epoch % CHECK_EVERY:
            return False
        found = recall(model, run.tokenizer, run.facts, sample, "train")
        progress.set_postfix(recall=f"{found:.3f}")
        return found >= config.stop_at_recall

    loss = torch.tensor(math.nan)
    while epoch < last and not learned():
        model.train()
        for tokens in epoch_batches(rows, config.batch_size, pad, config.seed * 1000 + epoch):
            loss = lm_loss(model(tokens).logits, tokens, pad)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update()
        epoch += 1
        _save_checkpoint(state, epoch, checkpoint, made_from)
        model.eval()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    progress.close()
    return epoch


def _checkpoint_path(out: Path) -> Path:
    return out.with_name(f".{out.name}.checkpoint.pt")


def _save_checkpoint(
    state: dict[str, Any], epoch: int, path: Path, made_from: dict[str, Any]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    saved = {name: part.state_dict() for name, part in state.items()}
    torch.save({**saved, "epoch": epoch, "made_from": made_from}, partial)
    partial.replace(path)


def _resume(state: dict[str, Any], path: Path, made_from: dict[str, Any]) -> int:
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    return _load_state(state, saved) if saved["made_from"] == made_from else 0


def _load_state(state: dict[str, Any], saved: dict[str, Any]) -> int:
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["epoch"]
