"""What the gate on reward shaping shares: a model of eight layers, advantage_mod on it, and everything redone by hand."""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from _models import VOCAB, norms_in_fp64
from _pairs import extractor_of, sides_of
from vgrout.adapter import AdapterConfig, attach
from vgrout.adapter.base import Adapter
from vgrout.directions.gradient import Sides
from vgrout.directions.live import LiveDirection
from vgrout.interventions.advantage_mod import AdvantageMod, AdvantageModSettings
from vgrout.types import Rollout

LAYERS = (5, 6)
"""Of eight, those at 60 to 75 % of the depth."""


@functools.cache
def stage(kind: str) -> tuple[nn.Module, Adapter]:
    """Eight layers, so that two of them are read; fp64; both blocks have moved."""
    torch.manual_seed(0)
    config = Qwen3Config(
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        hidden_size=32,
        intermediate_size=48,
        vocab_size=VOCAB,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    model = Qwen3ForCausalLM(config).eval()
    adapter = attach(model, AdapterConfig(kind=kind, rank=2))  # ty: ignore[invalid-argument-type]
    model.double()
    norms_in_fp64(model)
    with adapter.merged("base"):
        pass  # leaving it folds the weight anew, now in fp64
    move(adapter, 7)
    return model, adapter


@torch.no_grad()
def move(adapter: Adapter, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def mod(kind: str = "lora2r", source: str = "real", sides: Sides | None = None, every: int = 5, **settings: Any):
    """advantage_mod along a direction of these pairs."""
    model, adapter = stage(kind)
    extractor = extractor_of(model, adapter, sides or sides_of(6), source, refresh_every=every)
    direction = LiveDirection(extractor, extractor.extract(frozenset()), frozenset())
    found = AdvantageMod(AdvantageModSettings(**settings), adapter, 3)
    found.prepare(direction)
    return found


def plain(kind: str, row: Rollout) -> dict[str, list[float]]:
    """What the read layers put out at the row's last token, quarantine ablated: hooks on one whole forward of this row."""
    model, adapter = stage(kind)
    found: dict[str, list[float]] = {}

    def keep(n: int, output: Any) -> None:
        found[f"layer {n}"] = (output[0] if isinstance(output, tuple) else output)[0, -1].tolist()

    layers = model.get_submodule("model.layers")
    hooks = [layers[n - 1].register_forward_hook(lambda _m, _i, o, n=n: keep(n, o)) for n in LAYERS]  # ty: ignore[not-subscriptable]
    with torch.no_grad(), adapter.view("deploy"):
        model(input_ids=torch.tensor([row.prompt_ids + row.completion_ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def z_by_hand(scores: list[list[float]], keep: list[list[bool]], floor: float) -> list[list[float]]:
    found = []
    for row, kept in zip(scores, keep, strict=True):
        own = [s for s, k in zip(row, kept, strict=True) if k]
        if len(own) < 2:
            found.append([0.0] * len(row))
            continue
        mean, std = statistics.fmean(own), max(statistics.pstdev(own), floor)
        found.append([(s - mean) / std if k else 0.0 for s, k in zip(row, kept, strict=True)])
    return found


def shaped_by_hand(r: float, z: float, mode: str, alpha: float) -> float:
    if mode == "additive":
        return r - alpha * max(z, 0.0)
    return r * (1 - alpha / (1 + math.exp(-z))) if z > 0 else r


def f64(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def concept_by_hand(kind: str, sides: Sides) -> dict[str, list[float]]:
    n, rows = sides.n, [plain(kind, row) for row in sides.rows]
    return {
        name: [statistics.fmean(rows[i][name][j] - rows[n + i][name][j] for i in range(n)) for j in range(32)]
        for name in rows[0]
    }


def swap(sides: Sides, which: list[int]) -> Sides:
    """The same pairs, those of `which` with their sides exchanged."""
    rows, n = list(sides.rows), sides.n
    for i in which:
        rows[i], rows[n + i] = rows[n + i], rows[i]
    return Sides(tuple(rows))
