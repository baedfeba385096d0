"""Rollouts through the model once, and every candidate direction's scores of them: real, placebos, families, contents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.directions.activation import activations, pair_activations
from vgrout.directions.assessment import Layout
from vgrout.directions.bank import Bank, Scores, haar_bank, joined, pair_bank, score_rows
from vgrout.directions.direction import Extractor
from vgrout.directions.gradient import pair_gradients, row_gradients
from vgrout.types import Rollout, View

_BLOCK = 256
"""Rows between two reports of progress."""


def extended(layout: Layout, draws: int, contents: Sequence[str]) -> Layout:
    """Behind the directions of the pairs come the Haar draws, then one column for each content set."""
    end = max(at.stop for at in layout.values())
    last = {f"content {name}": slice(end + draws + i, end + draws + i + 1) for i, name in enumerate(contents)}
    return layout | {"haar": slice(end, end + draws)} | last


def _bank(
    sides: Mapping[str, Tensor],
    contents: Sequence[Mapping[str, Tensor]],
    weights: Float[Tensor, "n p"],
    what: str,
    draws: int,
) -> Bank:
    """The columns of `extended`."""
    others = [pair_bank(c, torch.ones(1, next(iter(c.values())).shape[1], dtype=torch.float64)) for c in contents]
    return joined([pair_bank(sides, weights), haar_bank(sides, what, draws), *others])


def gradient_scores(
    extractor: Extractor,
    contents: Mapping[str, Extractor],
    rollouts: Sequence[Rollout],
    weights: Float[Tensor, "n p"],
    draws: int,
    advance: Callable[[int], object],
) -> Scores:
    """Each rollout's NLL gradient against the directions of its own sampling view."""
    columns = weights.shape[0] + draws + len(contents)
    mean, pooled = (torch.zeros(len(rollouts), columns, dtype=torch.float64) for _ in range(2))
    policy, options = extractor.policy, extractor.options
    views: list[View] = sorted({r.view for r in rollouts})
    for view in views:
        sides, *others = (
            pair_gradients(policy, e.sides, view, options, deployed=False).probe
            for e in (extractor, *contents.values())
        )
        bank = _bank(sides, others, weights, f"v_grad {view}", draws)
        at = [i for i, r in enumerate(rollouts) if r.view == view]
        at.sort(
            key=lambda i: len(rollouts[i].prompt_ids) + len(rollouts[i].completion_ids)
        )  # little padding in a block
        for start in range(0, len(at), _BLOCK):
            block = at[start : start + _BLOCK]
            _, features = row_gradients(policy, [rollouts[i] for i in block], view, options, deployed=False)
            scores = score_rows(features, bank)
            mean[block], pooled[block] = scores.mean, scores.pooled
            advance(len(block))
    return Scores(mean, pooled)


def activation_scores(
    extractor: Extractor,
    contents: Mapping[str, Extractor],
    rollouts: Sequence[Rollout],
    weights: Float[Tensor, "n p"],
    draws: int,
) -> Scores:
    """The same of completion-mean activations, quarantine ablated, against v_act."""
    budget = extractor.config.token_budget
    sides, *others = (
        pair_activations(extractor.policy, e.sides, token_budget=budget) for e in (extractor, *contents.values())
    )
    bank = _bank(sides, others, weights, "v_act", draws)
    return score_rows(activations(extractor.policy, rollouts, token_budget=budget), bank)
