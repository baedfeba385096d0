"""Adapters with a deployed and a quarantine block. ADAPTERS is the one list: a new adapter is one file and one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from vgrout.adapter.base import Adapter
from vgrout.adapter.lora2r import attach_lora2r

ADAPTERS = {"lora2r": attach_lora2r}


@dataclass(frozen=True)
class AdapterConfig:
    """Which adapter is trained."""

    kind: Literal["lora2r"] = "lora2r"
    """Adapter: lora2r is a LoRA with a deployed and a quarantine block."""
    rank: int = 32
    """Rank of one block (the adapter holds two); clamped per module to half of its smaller size."""
    init_seed: int = 0
    """Seed of the adapter's random init; A0 and B0 are regenerated from it and never stored."""
    fold: bool = True
    """Subtract B0 A0 from the frozen weight once, so that training costs a plain rank-2r LoRA. Off: bit-exact identity."""


def attach(model: nn.Module, config: AdapterConfig) -> Adapter:
    """Wraps the target linears of `model` in place."""
    return ADAPTERS[config.kind](model, rank=config.rank, init_seed=config.init_seed, fold=config.fold)
