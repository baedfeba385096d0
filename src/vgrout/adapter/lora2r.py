"""lora2r: a LoRA of rank 2r whose first r directions are deployed and whose last r are the quarantine (spec 3.1).

    y = W x + bias + B (A x) - B0 (A0 x),      A0_ij ~ N(0, 1/d_in),  B0_ij ~ N(0, 1/2r),  A = A0, B = B0 at init

The net change is exactly 0 at init while A, B and the bottleneck h = A x are not, so both blocks receive gradient from
the first step and h carries features. The product is a sum over the 2r rank index, so there are no cross terms between
the blocks. A view resets a block to its *init*, never to zero: `deploy` uses (A[:r], A0[r:]) and (B[:, :r], B0[:, r:]).

Folded form: W' = W - B0 A0 is computed once, and y = W' x + bias + B_view (A_view x). It equals the form above in value
and in every gradient, because each view keeps the init path of the blocks that it resets; KL at init is exactly 0 in
both forms, because `base` runs the same operations in the same order.

Under a route the branches carry factors, token by token: c_d and c_q of the net branches are v_d, v_q in the forward and
f_d, f_q in the backward (vgrout.adapter.route). In the unfolded form this is c_d (B_d A_d - B0_d A0_d) x + c_q (...); in
the folded one each init branch has the factor 1 - c, because W' has taken it away once. Either way it is one product of
rank 4r with the factors on the rank axis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from vgrout.adapter.base import Adapter, replace_targets
from vgrout.adapter.linear import ACTS, AdaptedLinear, AdapterState, Factors, Trainable
from vgrout.adapter.removal import product_singular_values
from vgrout.adapter.route import BLOCKS, ForwardMasks
from vgrout.adapter.tokens import TokenIndex
from vgrout.types import UserError, View


class _Branch(torch.autograd.Function):
    """B (A x) whose parameter gradients leave through a recorder, rollout by rollout, in the one backward pass.

    Its factors are (x, h = A x, grad_h, grad_y). Recording happens in the backward, never in the forward, so that it is right under activation checkpointing, which
    runs the forward twice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, collect: Callable[..., None]) -> Tensor:
        h = F.linear(x, A)
        ctx.save_for_backward(x, A, B, h)
        ctx.collect = collect
        return F.linear(h, B)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None, None]:
        (grad_y,) = grads
        x, A, B, h = ctx.saved_tensors
        grad_h = grad_y @ B
        ctx.collect((x, h, grad_h, grad_y))
        return (grad_h @ A if ctx.needs_input_grad[0] else None), None, None, None


class _MaskedBranch(torch.autograd.Function):
    """B (v * A x) whose backward is that of B (f * A x), for factors v and f per token and group of rank entries.

    A and B hold the trained factors and, behind them, the init's. Without a recorder (`collect` None) the gradients of A
    and B go the usual way. That of v is the one of the forward; f has none, as it has no part in the value.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, v: Tensor, f: Tensor, collect: Callable[..., None] | None
    ) -> Tensor:
        h = F.linear(x, A)
        ctx.save_for_backward(x, A, B, h, v, f)
        ctx.collect = collect
        return F.linear(_scale(h, v), B)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad_y,) = grads
        x, A, B, h, v, f = ctx.saved_tensors
        of_x, of_A, of_B, of_v = ctx.needs_input_grad[:4]
        grad_branch = grad_y @ B
        grad_v = (grad_branch * h).unflatten(-1, (v.shape[-1], -1)).sum(-1) if of_v else None
        h, grad_h = _scale(h, f), _scale(grad_branch, f)
        dA = dB = None
        if ctx.collect is not None:
            k = A.shape[0] // 2
            ctx.collect((x, h[..., :k], grad_h[..., :k], grad_y))
        else:
            dA = grad_h.flatten(0, -2).T @ x.flatten(0, -2) if of_A else None
            dB = grad_y.flatten(0, -2).T @ h.flatten(0, -2) if of_B else None
        return (grad_h @ A if of_x else None), dA, dB, grad_v, None, None


def _scale(h: Float[Tensor, "*R k4"], factors: Float[Tensor, "*R c"]) -> Float[Tensor, "*R k4"]:
    """Multiplies each of the c equal groups of the rank axis by its own factor."""
    return (h.unflatten(-1, (factors.shape[-1], -1)) * factors.unsqueeze(-1)).flatten(-2)


class Lora2rLinear(AdaptedLinear):
    """One target linear. `rank` is the rank of one block; A, B, A0, B0 are fp32 whatever the model's dtype."""

    def __init__(self, linear: nn.Linear, name: str, state: AdapterState, *, rank: int, seed: int, fold: bool):
        super().__init__(linear, name, state)
        d_out, d_in = linear.weight.shape
        self.rank, self.fold = min(rank, min(d_in, d_out) // 2), fold
        if self.rank < 1:
            raise UserError(
                f"module {name} of shape [{d_out}, {d_in}] cannot hold rank 1 per block (its smaller size is below 2); "
                "give --adapter.rank at least 1 and a model whose target linears are at least 2 wide"
            )
        generator = torch.Generator().manual_seed(seed)
        A0 = torch.randn(2 * self.rank, d_in, generator=generator) / d_in**0.5
        B0 = torch.randn(d_out, 2 * self.rank, generator=generator) / (2 * self.rank) ** 0.5
        device = linear.weight.device
        self.register_buffer("A0", A0.to(device), persistent=False)
        self.register_buffer("B0", B0.to(device), persistent=False)
        self.A0: Tensor
        self.B0: Tensor
        self.A = nn.Parameter(self.A0.clone())
        self.B = nn.Parameter(self.B0.clone())
        self.load_weight(None)

    def trainables(self) -> list[Trainable]:
        columns = {block: self.block_columns(block) for block in BLOCKS}
        return [
            Trainable("A", self.A, self.A0, {block: (k,) for block, k in columns.items()}),
            Trainable("B", self.B, self.B0, {block: (slice(None), k) for block, k in columns.items()}),
        ]

    @property
    def basis(self) -> tuple[Tensor, ...]:
        return self.A0, self.B0

    def block_columns(self, block: str) -> slice:
        """Where the block lies on the rank axis."""
        return slice(0, self.rank) if block == "deployed" else slice(self.rank, 2 * self.rank)

    def block_gradients(self, factors: Factors, block: str, share: Float[Tensor, "R L 1"] | None) -> dict[str, Tensor]:
        """dA = sum_t share_t grad_h_t x_t^T and dB = sum_t share_t grad_y_t h_t^T, in the block's rank entries."""
        x, h, grad_h, grad_y = factors
        k = self.block_columns(block)
        h, grad_h = h[..., k], grad_h[..., k]
        if share is not None:
            h, grad_h = h * share.to(h.dtype), grad_h * share.to(h.dtype)
        return {
            "A": grad_h.flatten(0, 1).T @ x.flatten(0, 1),
            "B": grad_y.flatten(0, 1).T @ h.flatten(0, 1),
        }

    def rollout_gradients(self, factors: Factors, index: TokenIndex) -> dict[str, Float[Tensor, "n ..."]]:
        x, h, grad_h, grad_y = factors
        return {"A": index.segment_outer(grad_h, x), "B": index.segment_outer(grad_y, h)}

    def probe(self, gradients: dict[str, Float[Tensor, "n ..."]], view: View) -> Float[Tensor, "n k"]:
        """The c-probe: dL_i/dc of a virtual diagonal c = 1 between A and B is diag(B^T dB_i), B that of the view."""
        dB = gradients["B"]
        return einsum(self.factors(view)[1].to(dB.dtype), dB, "o k, n o k -> n k")

    def token_probe(self, factors: Factors) -> Float[Tensor, "R L k"]:
        """h_t * B^T grad_y_t: with diag(B^T dB) the same sum."""
        _, h, grad_h, _ = factors
        return h[..., : self.rank] * grad_h[..., : self.rank]

    @property
    def probe_size(self) -> int:
        return self.rank

    def bottleneck(self, x: Float[Tensor, "*R i"]) -> Float[Tensor, "*R k"]:
        return F.linear(x, self.A[: self.rank].to(x.dtype))

    def factors(self, view: View) -> tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]:
        """(A, B) of the view: trained rows where a block acts, init rows where it is reset."""
        if view == "full":
            return self.A, self.B
        if view == "base":
            return self.A0, self.B0
        A, B = [], []
        for block in BLOCKS:
            k = self.block_columns(block)
            of_A, of_B = (self.A, self.B) if block in ACTS[view] else (self.A0, self.B0)
            A.append(of_A[k])
            B.append(of_B[:, k])
        return torch.cat(A), torch.cat(B, dim=1)

    @torch.no_grad()
    def quarantine_singular_values(self) -> Float[Tensor, " k"]:
        """From B A - B0 A0 = [B - B0, B0] [A; A - A0], which does not cancel where the quarantine has hardly moved."""
        k = self.block_columns("quarantine")
        A, B, A0, B0 = self.A[k], self.B[:, k], self.A0[k], self.B0[:, k]
        values = product_singular_values(torch.cat([B - B0, B0], dim=1), torch.cat([A, A - A0]))
        return values.to(self.A.dtype)

    def block_delta(self, view: View) -> Float[Tensor, "o i"]:
        if view == "base":
            return torch.zeros_like(self.weight, dtype=torch.float32)
        A, B = self.factors(view)
        return B @ A - self.B0 @ self.A0

    def block_difference(self, view: View, merged: View) -> tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]:
        A, B = [self.A[:0]], [self.B[:, :0]]
        for block in BLOCKS:
            sign = (block in ACTS[view]) - (block in ACTS[merged])
            if sign:
                k = self.block_columns(block)
                A += [self.A[k], self.A0[k]]
                B += [sign * self.B[:, k], -sign * self.B0[:, k]]
        return torch.cat(A).to(self.weight.dtype), torch.cat(B, dim=1).to(self.weight.dtype)

    def training_weight(self, pristine: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
        return pristine.float() - self.B0 @ self.A0 if self.fold else pristine

    def branch(self, x: Float[Tensor, "*R i"]) -> Float[Tensor, "*R o"]:
        if self.state.masks is not None:
            return self._masked_branch(x, self.state.masks)
        A, B = (f.to(x.dtype) for f in self.factors(self.state.view))
        branch = self._branch(x, A, B)
        if not self.fold:
            branch = branch - F.linear(F.linear(x, self.A0.to(x.dtype)), self.B0.to(x.dtype))
        return branch

    def _branch(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        recorder = self.state.recorder
        if recorder is None or not torch.is_grad_enabled():
            return F.linear(F.linear(x, A), B)
        return _Branch.apply(x, A, B, partial(recorder.collect, self))

    def _masked_branch(self, x: Float[Tensor, "R L i"], masks: ForwardMasks) -> Float[Tensor, "R L o"]:
        """What the route adds to the frozen product."""
        taken = float(self.fold)  # W' lacks each init branch once
        v, f = (torch.cat([c, taken - c], dim=-1).to(x.dtype) for c in (masks.value, masks.flow))
        A = torch.cat([self.A, self.A0]).to(x.dtype)
        B = torch.cat([self.B, self.B0], dim=1).to(x.dtype)
        recorder = self.state.recorder
        collect = None if recorder is None or not torch.is_grad_enabled() else partial(recorder.collect, self)
        return _MaskedBranch.apply(x, A, B, v, f, collect)


def attach_lora2r(model: nn.Module, *, rank: int, init_seed: int, fold: bool = True) -> Adapter:
    """Replaces every target linear of `model` in place by a `Lora2rLinear` and freezes everything else.

    `rank` is per block and is clamped per module to half of its smaller size (recorded in checkpoints).
    Raises `UserError` for a model without target linears, or with one too small for rank 1 per block.
    """
    if rank < 1:
        raise UserError(f"adapter rank {rank}: expected at least 1 per block; set --adapter.rank")

    def make(linear: nn.Linear, name: str, state: AdapterState, seed: int) -> AdaptedLinear:
        return Lora2rLinear(linear, name, state, rank=rank, seed=seed, fold=fold)

    modules, state = replace_targets(model, make, init_seed)
    return Adapter(modules, state, kind="lora2r", settings={"rank": rank, "init_seed": init_seed})
