"""Cosines of the pairs' tokens with a direction: what a gate that routes tokens takes its edges from."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.adapter.gradients import PerToken
from vgrout.directions.direction import Extractor
from vgrout.directions.gradient import nll
from vgrout.directions.placebo import blinded_sides
from vgrout.policy import micro_batches
from vgrout.types import View


def token_cosines(
    extractor: Extractor, view: View, vectors: dict[str, Float[Tensor, " d"]]
) -> dict[str, Float[Tensor, "2 p L"]]:
    """Per module, the cosine of each token's NLL gradient with the module's vector: hacks [0], clean completions [1].

    Tokens without a gradient there have 0, padding nan. Where the source is `haar` the sides of half of the pairs are
    exchanged, as everywhere. The adapter's `.grad` stays as it is.
    """
    policy, rows = extractor.policy, extractor.sides.rows
    width = max(len(r.prompt_ids) + len(r.completion_ids) for r in rows)
    found = {name: torch.full((len(rows), width), float("nan")) for name in vectors}
    budget = extractor.config.token_budget
    for batch in micro_batches(rows, list(range(len(rows))), token_budget=budget, device=policy.device):
        recorder = PerToken()
        with policy.adapter.view(view), policy.adapter.recording(recorder):
            nll(policy.logps(batch), batch, extractor.options).backward()
        own = batch.index.rollout >= 0
        for name, (module, factors) in recorder.kept.items():
            cosine = token_cosine(module.token_probe(factors), vectors[name]).masked_fill(~own, float("nan"))
            found[name][list(batch.rows), : cosine.shape[1]] = cosine.float().cpu()
    return blinded_sides({name: c.unflatten(0, (2, extractor.sides.n)) for name, c in found.items()}, extractor.source)


def token_cosine(g: Float[Tensor, "R L d"], v: Float[Tensor, " d"]) -> Float[Tensor, "R L"]:
    """Cosine of each token's gradient with v; 0 where a norm is 0, or nothing but rounding beside its row's largest: a row's
    first token attends to itself alone, so that its query's gradient is 0 by the formula and noise by the computation."""
    v, size = v.to(g), g.norm(dim=-1)
    rounding = 16 * torch.finfo(g.dtype).eps * size.amax(dim=-1, keepdim=True)
    norm = size * v.norm()
    return torch.where((size <= rounding) | (norm == 0), 0.0, (g @ v) / torch.where(norm == 0, 1.0, norm))
