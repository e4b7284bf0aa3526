"""Activations that no model made, in the files that a harvest writes."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from workbench.activations import Activations, ActivationsCard
from workbench.activations.shards import Shard
from workbench.artifacts import file_sha256, write_json


def write(folder: Path, rows: Tensor, shards: int = 1, document_rows: int = 32) -> Activations:
    folder.mkdir(parents=True)
    dtype, written, first = str(rows.dtype).removeprefix("torch."), {}, 0
    for i, part in enumerate(rows.chunk(shards)):
        path = folder / f"shard-{i:05d}.safetensors"
        place = torch.arange(first, first + len(part), dtype=torch.int32)
        columns = {"document": place // document_rows, "position": place % document_rows}
        shard = Shard(path, len(part), rows.shape[1], dtype)
        shard.reserve()
        for name, column in {**columns, "token": place * 0, "acts": part}.items():
            shard.mapped(name, write=True).copy_(column)
        written[path.name] = {"rows": len(part), "sha256": file_sha256(path)}
        first += len(part)
    card = ActivationsCard(
        site="blocks.0.hook_resid_post",
        model_sha256="",
        model_name="planted",
        tokenizer_sha256="",
        d_model=rows.shape[1],
        dtype=dtype,
        documents=len(rows) // document_rows,
        tokens=len(rows),
        mean_norm=rows[:1000].float().norm(dim=-1).mean().item(),
        special_tokens="dropped",
        context_size=document_rows,
        processing="planted",
        versions={},
        shards=written,
    )
    write_json(folder / "card.json", asdict(card))
    return Activations.open(folder, verify=False)


def sparse_rows(rows: int, width: int, features: int, active: int, seed: int = 0) -> Tensor:
    """Sums of a few of many random unit directions with random sizes, and a little noise."""
    made = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, width, generator=made)
    directions /= directions.norm(dim=-1, keepdim=True)
    parts = []
    for _ in range(0, rows, 4096):
        chosen = torch.randint(features, (4096, active), generator=made)
        size = 0.5 + torch.rand(4096, active, generator=made)
        parts.append(torch.einsum("nk,nkd->nd", size, directions[chosen]))
    whole = torch.cat(parts)[:rows]
    return whole + 0.02 * torch.randn(whole.shape, generator=made)
