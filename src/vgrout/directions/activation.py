"""Activation directions: v_act[m] = unit(mean over pairs of (h_hack - h_clean)) (spec 4.3).

h is the mean, over the completion's tokens, of what the module's deployed block reads of its input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vgrout.adapter.linear import AdaptedLinear
from vgrout.directions.gradient import Sides
from vgrout.policy import Policy, micro_batches
from vgrout.types import Rollout, View


class _Means:
    """Means over each row's completion tokens, module by module."""

    def __init__(self, at: Int[Tensor, " n"], owner: Int[Tensor, " n"], lengths: Int[Tensor, " R"]):
        self.at, self.owner, self.lengths = at, owner, lengths
        self.found: dict[str, Float[Tensor, "R k"]] = {}

    def see(self, module: AdaptedLinear, x: Float[Tensor, "R L i"]) -> None:
        """Implements `Observer`."""
        h = module.bottleneck(x.flatten(0, 1)[self.at])
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        total = h.new_zeros((len(self.lengths), h.shape[1])).index_add_(0, self.owner, h)
        self.found[module.name] = total / self.lengths[:, None]


@torch.no_grad()
def activations(
    policy: Policy, rows: Sequence[Rollout], view: View = "deploy", *, token_budget: int
) -> dict[str, Float[Tensor, "n k"]]:
    """Per module, the mean bottleneck of each row's completion tokens, from one pass without gradient.

    A prompt that several rows share is run once: its keys and values serve all of them.
    """
    features: dict[str, Tensor] = {}

    def keep(means: _Means, at: Sequence[int]) -> None:
        for name, mean in means.found.items():
            own = features.setdefault(name, mean.new_zeros((len(rows), mean.shape[1]), device="cpu"))
            own[list(at)] = mean.cpu()

    shared, others = _by_prompt(rows)
    for batch in micro_batches(rows, others, token_budget=token_budget, device=policy.device):
        means = _Means(batch.predict_at + 1, batch.owner, batch.lengths)
        with policy.adapter.view(view), policy.adapter.observed(means):
            policy.backbone(input_ids=batch.tokens, use_cache=False)
        keep(means, batch.rows)
    for at in _chunks(rows, shared, token_budget):
        with policy.adapter.view(view):
            keep(_behind_prompts(policy, [rows[i] for i in at]), at)
    return features


SHARED = 3
"""Rows of one prompt from which on running it once is worth two calls of the model."""


def _by_prompt(rows: Sequence[Rollout]) -> tuple[list[int], list[int]]:
    """Rows whose prompt is shared by enough of them, those of prompts of one length side by side; and all others."""
    counts = Counter(r.prompt_ids for r in rows)
    shared = [i for i, r in enumerate(rows) if counts[r.prompt_ids] >= SHARED]
    shared.sort(key=lambda i: (len(rows[i].prompt_ids), rows[i].prompt_ids, i))
    return shared, [i for i, r in enumerate(rows) if counts[r.prompt_ids] < SHARED]


def _chunks(rows: Sequence[Rollout], at: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Runs of rows whose prompts have one length, within the budget of prompt and completion tokens."""
    current: list[int] = []
    for i in at:
        width = len(rows[i].prompt_ids) + max(len(rows[j].completion_ids) for j in [*current, i])
        other = current and len(rows[current[0]].prompt_ids) != len(rows[i].prompt_ids)
        if current and (other or width * (len(current) + 1) > token_budget):
            yield current
            current = []
        current.append(i)
    if current:
        yield current


def _behind_prompts(policy: Policy, rows: Sequence[Rollout]) -> _Means:
    """Means over the completions of rows whose prompts have one length, each distinct prompt run once."""
    device = policy.device
    prompts = list(dict.fromkeys(r.prompt_ids for r in rows))
    cache = policy.backbone(input_ids=torch.tensor(prompts, device=device), use_cache=True).past_key_values
    cache.reorder_cache(torch.tensor([prompts.index(r.prompt_ids) for r in rows], device=device))
    own = [torch.tensor(r.completion_ids) for r in rows]
    tokens = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
    lengths = torch.tensor([len(ids) for ids in own])
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    owner = torch.arange(len(rows)).repeat_interleave(lengths)
    means = _Means(real.flatten().nonzero().flatten().to(device), owner.to(device), lengths.to(device))
    with policy.adapter.observed(means):
        policy.backbone(input_ids=tokens.to(device), past_key_values=cache, use_cache=True)
    return means


def pair_activations(policy: Policy, sides: Sides, *, token_budget: int) -> dict[str, Float[Tensor, "2 p k"]]:
    """Per module, the features of both completions of every pair, quarantine ablated."""
    found = activations(policy, sides.rows, token_budget=token_budget)
    return {name: h.unflatten(0, (2, sides.n)) for name, h in found.items()}


def layers_read(depth: int) -> range:
    """The layers, counted from 1, whose output lies at 60 to 75 % of a model's depth; where none does, the one nearest to it."""
    chosen = [n for n in range(1, depth + 1) if 0.6 <= n / depth <= 0.75]
    if not chosen:
        chosen = [min(range(1, depth + 1), key=lambda n: abs(n / depth - 0.675))]
    return range(chosen[0], chosen[-1] + 1)


@torch.no_grad()
def last_hidden(
    policy: Policy, rows: Sequence[Rollout], view: View = "deploy", *, token_budget: int
) -> dict[str, Float[Tensor, "n H"]]:
    """Per layer of `layers_read`, the residual stream behind it at each row's last completion token (Wu and Tang 2026)."""
    features: dict[str, Tensor] = {}
    for batch in micro_batches(rows, list(range(len(rows))), token_budget=token_budget, device=policy.device):
        ends = batch.lengths.cumsum(0) - 1
        at = batch.predict_at[ends] + 1
        with policy.adapter.view(view):
            states = policy.backbone(input_ids=batch.tokens, use_cache=False, output_hidden_states=True).hidden_states
        for layer in layers_read(len(states) - 1):
            h = states[layer].flatten(0, 1)[at]
            h = h.to("cpu", torch.promote_types(h.dtype, torch.float32))
            features.setdefault(f"layer {layer}", h.new_zeros((len(rows), h.shape[1])))[list(batch.rows)] = h
    return features
