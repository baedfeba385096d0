"""Adapters with a deployed and a quarantine block. ADAPTERS is the one list: a new adapter is one file and one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from vgrout.adapter.base import Adapter
from vgrout.adapter.delta_s import QuarantineBasis, attach_delta_s
from vgrout.adapter.lora2r import attach_lora2r
from vgrout.types import UserError


@dataclass(frozen=True)
class AdapterConfig:
    """Which adapter is trained."""

    kind: Literal["lora2r", "delta_s"] = "lora2r"
    """lora2r: a LoRA with a deployed and a quarantine block. delta_s: shifts of each weight's singular values, in two
    vectors."""
    rank: int = 32
    """lora2r: rank of one block (the adapter holds two); clamped per module to half of its smaller size."""
    init_seed: int = 0
    """Seed of the adapter's random init (A0 and B0 are regenerated from it and never stored; delta_s: of the distinct
    basis)."""
    fold: bool = True
    """lora2r: subtract B0 A0 from the frozen weight once, so that training costs a plain rank-2r LoRA. Off: bit-exact
    identity."""
    quarantine_basis: QuarantineBasis = "shared"
    """delta_s: the quarantine moves the same singular directions as the deployed block, or a seeded rotation of them."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"--adapter.rank {self.rank}: expected at least 1 for each block")


ADAPTERS: dict[str, Callable[[nn.Module, AdapterConfig], Adapter]] = {
    "lora2r": lambda model, c: attach_lora2r(model, rank=c.rank, init_seed=c.init_seed, fold=c.fold),
    "delta_s": lambda model, c: attach_delta_s(model, init_seed=c.init_seed, quarantine_basis=c.quarantine_basis),
}


def attach(model: nn.Module, config: AdapterConfig) -> Adapter:
    """Wraps the target linears of `model` in place."""
    return ADAPTERS[config.kind](model, config)
