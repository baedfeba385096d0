"""The step benchmark's first part: floor and package compute the same before either is timed.

Both hold the same adapter, moved away from its init so that every term of the loss counts. Compared are logits, greedy
tokens, and the gradients of every intervention before it edits them: those of the floor are masked by hand, with the
advantages and block weights that the update reports, one backward for each sampling view and each pair of weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from _bench import Ours, PlainFloor
from _bench_work import Work
from vgrout.adapter.route import BLOCKS
from vgrout.interventions import INTERVENTIONS
from vgrout.update import UpdateStats

TOLERANCE = 1e-5
"""Largest difference in fp32, relative to the norm of the tensor."""


def equality(work: Work) -> Iterator[str]:
    """Asserts every comparison; yields one line for each, with its figure. `work` must be in fp32."""
    plain, prefix = PlainFloor(work, shared_prefix=False), PlainFloor(work, shared_prefix=True)
    adapter = [moved(p, seed) for seed, p in enumerate(plain.floor.parameters)]
    load(plain.floor.parameters, adapter)
    load(prefix.floor.parameters, adapter)
    yield from _same_outputs(work, adapter, plain, prefix)
    for name in INTERVENTIONS:
        ours = Ours(work, name)
        load(ours.adapter.parameters(), adapter)
        ours.generate(0)
        plain.completions = prefix.completions = _completions(ours).to(plain.prompts.device)
        stats = ours.backward(0)
        error = worst(_masked(ours, plain, stats), gradients(ours.adapter.parameters()))
        what = f"{name}: gradients against the floor's, masked by hand, {_taught(stats)}"
        yield compared(what, error)
        if name == "none_full":
            plain.train(0)
            whole = gradients(plain.floor.parameters)
            error = worst(whole, gradients(ours.adapter.parameters()))
            yield compared(f"{name}: gradients against the floor's own update", error)
            prefix.train(0)
            error = worst(whole, gradients(prefix.floor.parameters))
            yield compared("floor_prefix: gradients against the floor's own update", error)


def _same_outputs(work: Work, adapter: Sequence[Tensor], plain: PlainFloor, prefix: PlainFloor) -> Iterator[str]:
    """Logits of the training form, and greedy completions of the merged one."""
    ours = Ours(work, "none_full", temperature=0.0)
    load(ours.adapter.parameters(), adapter)
    with torch.no_grad():
        logits = ours.policy.model(input_ids=plain.prompts).logits
        error = worst([plain.floor.model(input_ids=plain.prompts).logits], [logits])
    yield compared("logits", error)
    ours.generate(0)
    tokens = _completions(ours)
    for name, system in (("floor", plain), ("floor_prefix", prefix)):
        same = int((system.floor.generate(system.prompts, greedy=True).cpu() == tokens).sum())
        assert same == tokens.numel(), f"{name}: {tokens.numel() - same} of {tokens.numel()} greedy tokens differ"
        yield f"{name}: {same} of {tokens.numel()} greedy tokens equal"


def _masked(ours: Ours, plain: PlainFloor, stats: UpdateStats) -> list[Tensor]:
    """The floor's gradients of the rows of each (view, block weights), masked by those weights and added up."""
    views = tuple(r.view for g in ours.groups for r in g.rollouts)
    advantages = torch.tensor(stats.advantages)
    weights = _weights(stats)
    prompts = plain.prompts.repeat_interleave(ours.work.settings.group_size, 0)
    total = [torch.zeros_like(p) for p in plain.floor.parameters]
    trained = [p.detach().clone() for p in plain.floor.parameters]
    parts = [t.parts for _, t in ours.adapter.trainables()]
    for view, mask in set(zip(views, weights, strict=True)):
        rows = [i for i, w in enumerate(weights) if (views[i], w) == (view, mask)]
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
        for out, p, part in zip(total, gradients(plain.floor.parameters), parts, strict=True):
            for block, weight in zip(BLOCKS, mask, strict=True):
                out[part[block]] += weight * p[part[block]]
        load(plain.floor.parameters, trained)
    return total


def _weights(stats: UpdateStats) -> list[tuple[float, float]]:
    """Of each row; those that were not forwarded, because a monitor has screened them, teach nothing."""
    forwarded = (logp is not None for logp in stats.mean_logp)
    return [w if ran else (0.0, 0.0) for w, ran in zip(stats.weights, forwarded, strict=True)]


def _taught(stats: UpdateStats) -> str:
    """How many rows teach which block."""
    names = {(True, False): "deployed", (True, True): "both", (False, True): "quarantine", (False, False): "neither"}
    counts = Counter(names[d > 0, q > 0] for d, q in _weights(stats))
    return "rows that teach " + ", ".join(f"{name} {counts[name]}" for name in names.values() if counts[name])


def moved(p: Tensor, seed: int) -> Tensor:
    """`p` with a tenth of its spread in noise on it."""
    noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p.device)
    return p.detach() + 0.1 * p.detach().std() * noise


@torch.no_grad()
def load(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies the values into the parameters."""
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


def _completions(ours: Ours) -> Tensor:
    return torch.tensor([r.completion_ids for g in ours.groups for r in g.rollouts])


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Their `.grad`; each must have one."""
    found = [p.grad for p in parameters if p.grad is not None]
    assert len(found) == len(parameters)
    return found


def worst(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Largest relative difference over the tensors; an expected zero must be exactly zero, but not everywhere."""
    assert any(bool((e != 0).any()) for e in expected), "nothing to compare: every expected tensor is zero"
    worst = 0.0
    for e, g in zip(expected, got, strict=True):
        norm = float(e.double().norm())
        worst = max(worst, float((e.double() - g.double()).norm()) / norm if norm else float(bool((g != 0).any())))
    return worst


def compared(what: str, error: float) -> str:
    """The line of a comparison whose relative difference is `error`; asserts that it is small."""
    assert error <= TOLERANCE, f"{what}: relative difference {error:.1e} above {TOLERANCE:.0e}"
    return f"{what}: relative difference {error:.1e} (at most {TOLERANCE:.0e})"
