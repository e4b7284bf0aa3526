"""Edits compiled alone and within a model, without the test run's type checks to compile along.

Prints a row for each saved edit: by how much its compiled output differs, by how much that of the
compiled model under it does, and how much the edit changes at all.
"""

import json
import sys
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from workbench.hooks import edited
from workbench.interventions import load_edit


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def differences(model: Any, edit: Any, backend: str, device: str) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    resid = 2 * torch.randn(3, 6, 32, generator=generator).to(device)
    tokens = torch.randint(4, 50, (4, 9), generator=generator).to(device)
    torch._dynamo.reset()
    alone = largest(torch.compile(edit, backend=backend, fullgraph=True)(resid), edit(resid))
    with edited(model, [edit]):
        wanted = model(tokens).logits
        found = torch.compile(model, backend=backend)(tokens).logits
    return [alone, largest(found, wanted), largest(model(tokens).logits, wanted)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder, backend, device = sys.argv[1:]
    model = LlamaForCausalLM.from_pretrained(f"{folder}/model").eval().to(device)
    edits = load_edit(f"{folder}/edits", device)
    sys.stdout.write(json.dumps([differences(model, e, backend, device) for e in edits]))
