"""One target linear with an adapter, and what all of a model's adapted linears read in their forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vgrout.adapter.removal import random_factors
from vgrout.adapter.route import BLOCKS, ForwardMasks
from vgrout.adapter.tokens import TokenIndex
from vgrout.types import View

ACTS: dict[View, tuple[str, ...]] = {
    "full": BLOCKS,
    "deploy": BLOCKS[:1],
    "base": (),
    "clean_ablated": BLOCKS[1:],
}
"""The blocks that are not reset in a view. A view that is not named here has no training forward."""
REMOVED: View = "random_removal"
"""The view of merged weights alone: `full`, less a random matrix with the quarantine's singular values."""

Factors = tuple[Tensor, ...]
"""What one backward leaves at an adapted linear, per token; the adapter's module says what each tensor is."""


@runtime_checkable
class Recorder(Protocol):
    """Receives each adapted linear's factors of the parameter gradient, once, in the backward pass."""

    def collect(self, module: AdaptedLinear, factors: Factors) -> None: ...


@runtime_checkable
class Observer(Protocol):
    """Receives the input of each adapted linear in the forward pass, for features that need no gradient."""

    def see(self, module: AdaptedLinear, x: Float[Tensor, "R L i"]) -> None: ...


@dataclass
class AdapterState:
    """What the adapted linears read in their forward; changed only through the context managers of `Adapter`."""

    view: View = "full"
    masks: ForwardMasks | None = None
    """Of the current route. Views put None here: without a route the forward never looks at it twice."""
    merged: View | None = None
    shares: tuple[Float[Tensor, "R 1 1"], ...] = ()
    """For each view beside the merged one: 1 for the batch rows that are in it, 0 for the others."""
    recorder: Recorder | None = None
    observer: Observer | None = None
    removal_seed: int | None = None
    """Of the random removal; None: nobody has said which, so there is none."""


@dataclass(frozen=True)
class Trainable:
    """A trainable tensor, its frozen init, and the part of it that belongs to each block."""

    key: str
    value: nn.Parameter
    init: Tensor
    parts: dict[str, tuple[slice, ...]]


class AdaptedLinear(nn.Module, ABC):
    """A target linear with its adapter. `weight` holds the training form of the frozen weight, or a merged one."""

    def __init__(self, linear: nn.Linear, name: str, state: AdapterState):
        super().__init__()
        self.name, self.state = name, state
        self.rank = 0
        """Rank of one block, set by the adapter."""
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        host = linear.weight.detach().to("cpu", copy=True)
        self.pristine = host.pin_memory() if linear.weight.is_cuda else host
        """Host copy of the original weight: every merge and restore starts from it, never from a rounded result."""
        self.differences: tuple[tuple[Tensor, Tensor], ...] = ()
        """Factors (A, B) that lead from the merged view to each view of `AdapterState.shares`."""

    def forward(self, x: Float[Tensor, "*R i"]) -> Float[Tensor, "*R o"]:
        if self.state.observer is not None:
            self.state.observer.see(self, x)
        y = F.linear(x, self.weight, self.bias)
        if self.state.merged is not None:
            for (A, B), share in zip(self.differences, self.state.shares, strict=True):
                y = y + F.linear(F.linear(x, A) * share, B)
            return y
        masks = self.state.masks
        if masks is not None and masks.value.shape[:-1] != x.shape[:-1]:
            shapes = f"{tuple(masks.value.shape[:-1])} tokens, the input of {self.name} has {tuple(x.shape[:-1])}"
            raise ValueError(f"route: spread over {shapes}; a route must be spread over the batch that is run")
        branch = self.branch(x)
        return y if branch is None else y + branch

    @abstractmethod
    def branch(self, x: Float[Tensor, "*R i"]) -> Float[Tensor, "*R o"] | None:
        """What the adapter adds to the frozen product under the current view or route; None: nothing at all."""

    @abstractmethod
    def trainables(self) -> list[Trainable]: ...

    @property
    @abstractmethod
    def basis(self) -> tuple[Tensor, ...]:
        """The frozen tensors that give the trained ones their meaning."""

    @abstractmethod
    def block_gradients(self, factors: Factors, block: str, share: Float[Tensor, "R L 1"] | None) -> dict[str, Tensor]:
        """Gradient of the block's part of each trainable, by key, summed over tokens weighed with `share` (None: 1)."""

    @abstractmethod
    def rollout_gradients(self, factors: Factors, index: TokenIndex) -> dict[str, Float[Tensor, "n ..."]]:
        """Each rollout's own gradient of every trainable, by key."""

    @abstractmethod
    def probe(self, gradients: dict[str, Float[Tensor, "n ..."]], view: View) -> Float[Tensor, "n k"]:
        """Rollouts' gradients in the adapter's routing coordinates; those of the deployed block come first."""

    @abstractmethod
    def token_probe(self, factors: Factors) -> Float[Tensor, "R L k"]:
        """Each token's gradient in the routing coordinates of the deployed block, of which `probe` has the sums."""

    @property
    @abstractmethod
    def probe_size(self) -> int:
        """Routing coordinates of the deployed block."""

    @abstractmethod
    def bottleneck(self, x: Float[Tensor, "*R i"]) -> Float[Tensor, "*R k"]:
        """What the deployed block reads of its input."""

    @property
    def blocks_equal(self) -> bool:
        """Whether both blocks are the same change of the weight, so that ablating one halves the change and no more."""
        return False

    def parts(self, block: str) -> list[tuple[Trainable, tuple[slice, ...]]]:
        """The trainables that the block has a part in, and that part, in a fixed order."""
        return [(t, t.parts[block]) for t in self.trainables() if block in t.parts]

    @torch.no_grad()
    def delta(self, view: View) -> Float[Tensor, "o i"]:
        """Net change of the weight in this view, fp32; exactly 0 for `base`. `random_removal` needs `Adapter.removing`."""
        if view != REMOVED:
            return self.block_delta(view)
        whole = self.block_delta("full")
        A, B = self.removal()
        return whole - B @ A if len(A) else whole

    @torch.no_grad()
    def difference(self, view: View, merged: View) -> tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]:
        """(A, B) with B A = delta(view) - delta(merged), in the weight's dtype."""
        of_view, of_merged = (v if v != REMOVED else "full" for v in (view, merged))
        A, B = self.block_difference(of_view, of_merged)
        if (sign := (view == REMOVED) - (merged == REMOVED)) != 0:
            of_A, of_B = (f.to(A) for f in self.removal())
            A, B = torch.cat([A, of_A]), torch.cat([B, -sign * of_B], dim=1)
        return A, B

    def removal(self) -> tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]:
        """(A, B) of the matrix B A that `random_removal` subtracts; without any entry where the quarantine has not moved."""
        if self.state.removal_seed is None:
            raise ValueError("adapter: the random removal has no seed; name one with Adapter.removing(seed)")
        d_out, d_in = self.weight.shape
        moved = any(bool((t.value[part] != t.init[part]).any()) for t, part in self.parts("quarantine"))
        values = self.quarantine_singular_values() if moved else torch.zeros(0, device=self.weight.device)
        return random_factors(values, (d_out, d_in), seed=self.state.removal_seed, name=self.name)

    @abstractmethod
    def quarantine_singular_values(self) -> Float[Tensor, " k"]:
        """Singular values of the quarantine's net change of the weight, in the trained tensors' dtype; the others are 0."""

    @abstractmethod
    def block_delta(self, view: View) -> Float[Tensor, "o i"]:
        """Net change of the weight by the blocks that act in this view, fp32; exactly 0 for `base`."""

    @abstractmethod
    def block_difference(self, view: View, merged: View) -> tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]:
        """(A, B) with B A = block_delta(view) - block_delta(merged), in the weight's dtype."""

    @abstractmethod
    def training_weight(self, pristine: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
        """The frozen weight that the training forward uses."""

    @torch.no_grad()
    def load_weight(self, view: View | None) -> None:
        """Writes the merged weight of `view` (None: the training form) in place, from the pristine copy."""
        pristine = self.pristine.to(self.weight.device, non_blocking=True)
        if view is None:
            self.weight.copy_(self.training_weight(pristine))
        elif view == "base":
            self.weight.copy_(pristine)
        else:
            self.weight.copy_(pristine.float() + self.delta(view))
