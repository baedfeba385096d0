"""The step benchmark's first part: floor and package compute the same before either is timed.

Both hold the same adapter, moved away from its init so that every term of the loss counts. Compared are logits, greedy
tokens, and the gradients of every intervention: those of the floor are masked by hand, as the intervention's route says,
one backward for each sampling view and each pair of block weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from _bench import Ours, PlainFloor, Work
from vgrout.adapter.route import BLOCKS
from vgrout.interventions import INTERVENTIONS
from vgrout.interventions.base import Rows

TOLERANCE = 1e-5
"""Largest difference in fp32, relative to the norm of the tensor."""


def equality(work: Work) -> list[str]:
    """Asserts every comparison; returns one line for each, with its figure. `work` must be in fp32."""
    plain, prefix = PlainFloor(work, shared_prefix=False), PlainFloor(work, shared_prefix=True)
    adapter = [_moved(p, seed) for seed, p in enumerate(plain.floor.parameters)]
    _load(plain.floor.parameters, adapter)
    _load(prefix.floor.parameters, adapter)
    lines = _same_outputs(work, adapter, plain, prefix)
    for name in INTERVENTIONS:
        ours = Ours(work, name)
        _load(ours.adapter.parameters(), adapter)
        ours.generate(0)
        plain.completions = prefix.completions = _completions(ours).to(plain.prompts.device)
        advantages = torch.tensor(ours.train(0).advantages)
        error = _worst(_masked(ours, plain, advantages), _gradients(ours.adapter.parameters()))
        lines.append(_line(f"{name}: gradients against the floor's, masked by hand", error))
        if name == "none_full":
            plain.train(0)
            whole = _gradients(plain.floor.parameters)
            error = _worst(whole, _gradients(ours.adapter.parameters()))
            lines.append(_line(f"{name}: gradients against the floor's own update", error))
            prefix.train(0)
            error = _worst(whole, _gradients(prefix.floor.parameters))
            lines.append(_line("floor_prefix: gradients against the floor's own update", error))
    return lines


def _same_outputs(work: Work, adapter: Sequence[Tensor], plain: PlainFloor, prefix: PlainFloor) -> list[str]:
    """Logits of the training form, and greedy completions of the merged one."""
    ours = Ours(work, "none_full", temperature=0.0)
    _load(ours.adapter.parameters(), adapter)
    with torch.no_grad():
        logits = ours.policy.model(input_ids=plain.prompts).logits
        error = _worst([plain.floor.model(input_ids=plain.prompts).logits], [logits])
    lines = [_line("logits", error)]
    ours.generate(0)
    tokens = _completions(ours)
    for name, system in (("floor", plain), ("floor_prefix", prefix)):
        same = int((system.floor.generate(system.prompts, greedy=True).cpu() == tokens).sum())
        assert same == tokens.numel(), f"{name}: {tokens.numel() - same} of {tokens.numel()} greedy tokens differ"
        lines.append(f"{name}: {same} of {tokens.numel()} greedy tokens equal")
    return lines


def _masked(ours: Ours, plain: PlainFloor, advantages: Float[Tensor, " N"]) -> list[Tensor]:
    """The floor's gradients of the rows of each (view, block weights), masked by those weights and added up."""
    views = tuple(r.view for g in ours.groups for r in g.rollouts)
    labels = ours.work.labels(0).flatten() if ours.intervention.oracle else None
    weights = ours.intervention.route(Rows(advantages, views, labels, step=0)).block_weights(views)
    prompts = plain.prompts.repeat_interleave(ours.work.settings.group_size, 0)
    total = [torch.zeros_like(p) for p in plain.floor.parameters]
    trained = [p.detach().clone() for p in plain.floor.parameters]
    parts = [t.parts for _, t in ours.adapter.trainables()]
    for view, mask in {(view, tuple(w)) for view, w in zip(views, weights.tolist(), strict=True)}:
        rows = [i for i, w in enumerate(weights.tolist()) if (views[i], tuple(w)) == (view, mask)]
        if view == "deploy":  # the quarantine is reset to its init
            for p, p0, part in zip(plain.floor.parameters, plain.floor.initial, parts, strict=True):
                p.data[part["quarantine"]] = p0[part["quarantine"]]
        plain.floor.optimizer.zero_grad(set_to_none=True)
        plain.floor.backward(
            prompts[rows],
            plain.completions[rows],
            advantages[rows].to(prompts.device),
            denominator=plain.completions.numel(),
        )
        for out, p, part in zip(total, _gradients(plain.floor.parameters), parts, strict=True):
            for block, weight in zip(BLOCKS, mask, strict=True):
                out[part[block]] += weight * p[part[block]]
        _load(plain.floor.parameters, trained)
    return total


def _moved(p: Tensor, seed: int) -> Tensor:
    noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p.device)
    return p.detach() + 0.1 * p.detach().std() * noise


@torch.no_grad()
def _load(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


def _completions(ours: Ours) -> Tensor:
    return torch.tensor([r.completion_ids for g in ours.groups for r in g.rollouts])


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert len(gradients) == len(parameters)
    return gradients


def _worst(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Largest relative difference over the tensors; an expected zero must be exactly zero, but not everywhere."""
    assert any(bool((e != 0).any()) for e in expected), "nothing to compare: every expected tensor is zero"
    worst = 0.0
    for e, g in zip(expected, got, strict=True):
        norm = float(e.double().norm())
        worst = max(worst, float((e.double() - g.double()).norm()) / norm if norm else float(bool((g != 0).any())))
    return worst


def _line(what: str, error: float) -> str:
    assert error <= TOLERANCE, f"{what}: relative difference {error:.1e} above {TOLERANCE:.0e}"
    return f"{what}: relative difference {error:.1e} (at most {TOLERANCE:.0e})"
