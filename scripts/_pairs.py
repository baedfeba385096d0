"""Pairs and extractors for the gates of directions: random tokens on the small Qwen3, so that every number can be redone."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from _models import VOCAB, adapted, plain_logps, policy_of, step_of
from vgrout.adapter.base import Adapter
from vgrout.directions.config import ExtractionConfig
from vgrout.directions.direction import Extractor
from vgrout.directions.gradient import Sides
from vgrout.directions.live import LiveDirection
from vgrout.directions.placebo import parse_source
from vgrout.grpo import GrpoConfig
from vgrout.interventions.none import NoIntervention
from vgrout.types import Group, Prompt, Rollout, View
from vgrout.update import update

T = 0.8


def sides_of(n: int, seed: int = 0) -> Sides:
    """n pairs of random tokens and mixed lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        size = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(0, VOCAB, (size,), generator=generator).tolist())

    prompts = [ids(3, 8) for _ in range(n)]
    rows = []
    for side in ("hack", "clean"):
        for i, prompt_ids in enumerate(prompts):
            prompt = Prompt(f"p{i}", "pair", "train", "", (("user", "x"),))
            rows.append(Rollout(f"p{i}/{side}", prompt, prompt_ids, ids(2, 9), "", "teacher", "full", True))
    return Sides(tuple(rows))


def extractor_of(model: nn.Module, adapter: Adapter, sides: Sides, source: str = "real", **settings: Any) -> Extractor:
    """An extractor at the gates' temperature and max_new 12."""
    options: dict[str, Any] = {"token_budget": 60, **settings}
    config = ExtractionConfig(**options)
    return Extractor(policy_of(model, adapter, temperature=T), sides, parse_source(source), config, 12)


def nll_gradient(model: nn.Module, adapter: Adapter, row: Rollout, view: View, weight: float) -> dict[str, Tensor]:
    """By module: the deployed block's gradient of `weight` times the summed NLL, by autograd and in the order of the
    trainables; nothing of ours but the adapter's forward is in it."""
    for parameter in adapter.parameters():
        parameter.grad = None
    with adapter.view(view):
        (-weight * plain_logps(model, row, T).sum()).backward()
    found = {}
    for module in adapter.modules:
        parts = []
        for t in module.trainables():
            if "deployed" in t.parts:
                g = torch.zeros_like(t.value) if t.value.grad is None else t.value.grad
                parts.append(g[t.parts["deployed"]].flatten())
        found[module.name] = torch.cat(parts).clone()
    return found


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(k: int, d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(d, k, seed=seed))[0].T.contiguous()


@functools.cache
def stage(kind: str) -> tuple[Any, Adapter, LiveDirection]:
    model, adapter = adapted(kind=kind)  # ty: ignore[invalid-argument-type]
    extractor = extractor_of(model, adapter, sides_of(6), top_k=4, k_use=3, noise_floor=0.0)
    return model, adapter, LiveDirection(extractor, extractor.extract())


def number(value: float | None) -> float:
    assert value is not None
    return value


STEP = step_of([[3.0, 0.5, 2.0, 3.0], [3.0, 0.5, 0.0, 0.5]], labels=False)
CONFIG = GrpoConfig(prompts_per_step=2, group_size=4, beta=0.0, checkpoint_activations=False)


def backward(model: Any, adapter: Adapter, groups: tuple[Group, ...] = STEP.groups, **options: Any) -> Any:
    none = NoIntervention(NoIntervention.Settings(), adapter, 0)
    policy = policy_of(model, adapter)
    return update(policy, groups, STEP.seen, STEP.rewards, STEP.keep, none, CONFIG, max_new=12, step=0, **options)
