"""P3 and P4: readers with a hidden layer, and readers that look at all tokens of a prompt."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.audit.probes.labels import Labels
from workbench.facts.schema import Fact

SEEDS, HIDDEN, DROPOUT, DECAY = 3, 64, 0.2, 1e-3
MLP_RATE, ATTENTION_RATE = 3e-3, 5e-2
STEPS, BATCH, LOOK_EVERY = 150, 64, 10
"""Steps of how many facts, and how often the choosing facts are looked at."""

Facts = tuple[Float[Tensor, "place _fact d_model"], Sequence[Fact]]
Sequences = tuple[
    Float[Tensor, "depth _fact _pos d_model"], Bool[Tensor, "_fact _pos"], Sequence[Fact]
]
Parameters = list[Tensor]
Net = Callable[[Parameters, Int[Tensor, " row"] | None, torch.Generator | None], Tensor]
"""Logits [net, row, k] for some rows (None: all); with dropout where a generator is given."""


@torch.enable_grad()
def mlp_logits(
    labels: Labels, fit: Facts, choose: Facts, asked: Facts, seed: int
) -> Float[Tensor, "place fact k"]:
    """Logits of MLPs with one hidden layer, fitted on some facts, for others.

    Three seeds for every place are trained side by side by AdamW, each is kept as it was when the
    choosing facts were likeliest, and their logits are averaged. The relation is an input.

    Args:
        fit, choose, asked: standardised rows with the facts they are of.
    """
    generator = torch.Generator().manual_seed(seed)
    n_places, _, d_model = fit[0].shape
    n_relations, k = labels.allowed.shape
    nets, inputs = n_places * SEEDS, d_model + n_relations
    first = torch.randn(nets, inputs, HIDDEN, generator=generator) / inputs**0.5
    second = torch.randn(nets, HIDDEN, n_relations * k, generator=generator) / HIDDEN**0.5
    biases = torch.zeros(nets, 1, HIDDEN), torch.zeros(nets, 1, n_relations * k)

    def net(data: Facts) -> Net:
        relation = labels.relation_of(data[1])
        one_hot = torch.nn.functional.one_hot(relation, n_relations).float()
        x = torch.cat([data[0], one_hot.expand(n_places, -1, -1)], -1)

        def logits(
            p: Parameters, rows: Int[Tensor, " row"] | None, noise: torch.Generator | None
        ) -> Tensor:
            some = x if rows is None else x[:, rows]
            hidden = torch.baddbmm(p[1], some.repeat_interleave(SEEDS, 0), p[0]).relu()
            if noise is not None:
                kept = torch.rand(hidden.shape, generator=noise) >= DROPOUT
                hidden = hidden * kept / (1 - DROPOUT)
            out = torch.baddbmm(p[3], hidden, p[2])
            return _own_columns(out, labels, relation if rows is None else relation[rows])

        return logits

    start = [first, biases[0], second, biases[1]]
    learnt, choosing = (net(fit), labels.objects(fit[1])), (net(choose), choose[1], labels)
    best = _train(start, learnt, choosing, MLP_RATE, seed)
    with torch.no_grad():
        return net(asked)(best, None, None).unflatten(0, (n_places, SEEDS)).mean(1)


@torch.enable_grad()
def attention_logits(
    labels: Labels, fit: Sequences, choose: Sequences, asked: Sequences, seed: int
) -> Float[Tensor, "depth fact k"]:
    """Logits of readers that weigh a prompt's tokens by one learned query and read their mean.

    Trained like the MLPs. Source: none known; a query of its own is the least that finds a token.
    """
    generator = torch.Generator().manual_seed(seed)
    n_depths, _, _, d_model = fit[0].shape
    n_relations, k = labels.allowed.shape
    nets = n_depths * SEEDS
    tokens = fit[0][:, fit[1]]
    mean = tokens.mean(1)[:, None, None]
    std = tokens.std(1).clamp_min(1e-6)[:, None, None]
    query = torch.randn(nets, d_model, 1, generator=generator) / d_model**0.5
    out = torch.randn(nets, d_model, n_relations * k, generator=generator) / d_model**0.5

    def net(data: Sequences) -> Net:
        x, relation = (data[0] - mean) / std, labels.relation_of(data[2])
        padding = torch.zeros(data[1].shape).masked_fill(~data[1], -torch.inf)

        def logits(
            p: Parameters, rows: Int[Tensor, " row"] | None, noise: torch.Generator | None
        ) -> Tensor:
            some, masked = (x, padding) if rows is None else (x[:, rows], padding[rows])
            many = some.repeat_interleave(SEEDS, 0)
            flat = torch.bmm(many.flatten(1, 2), p[0]).unflatten(1, many.shape[1:3])
            weight = (flat[..., 0] + masked).softmax(-1)
            pooled = torch.einsum("mrp,mrpd->mrd", weight, many)
            if noise is not None:
                kept = torch.rand(pooled.shape, generator=noise) >= DROPOUT
                pooled = pooled * kept / (1 - DROPOUT)
            said = torch.baddbmm(p[2], pooled, p[1])
            return _own_columns(said, labels, relation if rows is None else relation[rows])

        return logits

    start = [query, out, torch.zeros(nets, 1, n_relations * k)]
    learnt, choosing = (net(fit), labels.objects(fit[2])), (net(choose), choose[2], labels)
    best = _train(start, learnt, choosing, ATTENTION_RATE, seed)
    with torch.no_grad():
        return net(asked)(best, None, None).unflatten(0, (n_depths, SEEDS)).mean(1)


def _own_columns(
    out: Float[Tensor, "net row column"], labels: Labels, relation: Int[Tensor, " row"]
) -> Float[Tensor, "net row k"]:
    """Each row's logits for its own relation's candidates."""
    n_relations, k = labels.allowed.shape
    own = out.unflatten(-1, (n_relations, k))[:, torch.arange(len(relation)), relation]
    return own.masked_fill(~labels.allowed[relation], -torch.inf)


def _train(
    start: Parameters,
    fit: tuple[Net, Int[Tensor, " fact"]],
    choose: tuple[Net, Sequence[Fact], Labels],
    rate: float,
    seed: int,
) -> Parameters:
    """All nets side by side; each as it was when it did best on the choosing facts."""
    generator = torch.Generator().manual_seed(seed + 1)
    parameters = [p.requires_grad_() for p in start]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=DECAY)
    net, right = fit
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    best, lowest = [p.detach().clone() for p in parameters], torch.full((len(start[0]),), torch.inf)
    order = torch.empty(0, dtype=torch.long)
    for step in range(1, STEPS + 1):
        if len(order) < min(BATCH, len(right)):
            order = torch.cat([order, torch.randperm(len(right), generator=generator)])
        rows, order = order[:BATCH], order[BATCH:]
        loss = _loss(net(parameters, rows, generator), right[rows])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        falling.step()
        if step % LOOK_EVERY == 0 and choose[1]:
            with torch.no_grad():
                now = _loss(choose[0](parameters, None, None), choose[2].objects(choose[1]))
                better = now < lowest
                lowest = torch.where(better, now, lowest)
                best = [
                    torch.where(better.view(-1, 1, 1), p.detach(), b)
                    for p, b in zip(parameters, best, strict=True)
                ]
    return best if choose[1] else [p.detach() for p in parameters]


def _loss(logits: Float[Tensor, "net row k"], right: Int[Tensor, " row"]) -> Float[Tensor, " net"]:
    logprobs = logits.log_softmax(-1)
    return -logprobs.gather(-1, right.expand(len(logprobs), -1)[..., None])[..., 0].mean(1)
