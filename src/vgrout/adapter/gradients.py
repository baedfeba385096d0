"""From one backward pass to the blocks' gradients: each rollout's own, or already summed under a known route.

With h = A x, the gradient of rollout i is dB_i = sum_t grad_y_t h_t^T and dA_i = sum_t grad_h_t x_t^T over its tokens t.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from vgrout.adapter.base import AdaptedLinear
from vgrout.adapter.lora2r import Lora2rLinear
from vgrout.adapter.route import BLOCKS
from vgrout.adapter.tokens import TokenIndex
from vgrout.types import View


class BlockSums:
    """Adds the routed sum over rollouts to `.grad` during the backward: for a route that is known beforehand.

    `weights[n, 2]` is the share of each rollout's gradient that reaches each of `BLOCKS`: an exact parameter mask.
    It costs what a plain backward costs; nothing is kept per rollout.
    """

    def __init__(self, index: TokenIndex, weights: Float[Tensor, "n 2"]):
        self.shares: dict[str, Tensor | None] = {}
        """Blocks that learn from these rollouts; None stands for the whole gradient of every one of them."""
        for block, column in zip(BLOCKS, weights.unbind(dim=1), strict=True):
            if bool((column == 1).all()):
                self.shares[block] = None
            elif bool((column != 0).any()):
                self.shares[block] = index.spread(column.to(index.rollout.device))

    def collect(self, module: AdaptedLinear, x: Tensor, h: Tensor, grad_h: Tensor, grad_y: Tensor) -> None:
        """Implements `Recorder` for lora2r."""
        assert isinstance(module, Lora2rLinear)
        flat_x, flat_grad_y = x.flatten(0, 1), grad_y.flatten(0, 1)
        for block, share in self.shares.items():
            k = module.block_columns(block)
            h_b, grad_h_b = h[..., k], grad_h[..., k]
            if share is not None:
                h_b, grad_h_b = h_b * share.to(h.dtype), grad_h_b * share.to(h.dtype)
            _accumulate(module.A, (k,), grad_h_b.flatten(0, 1).T @ flat_x)
            _accumulate(module.B, (slice(None), k), flat_grad_y.T @ h_b.flatten(0, 1))


class PerRollout:
    """Keeps every rollout's own dA, dB of this batch until a gate that reads them has decided the route.

    Memory: n times the adapter's size in the compute dtype, for the n rollouts of one micro-batch.
    """

    def __init__(self, index: TokenIndex):
        self.index = index
        self.kept: dict[str, tuple[Lora2rLinear, Tensor, Tensor]] = {}
        self._views: dict[str, View] = {}

    def collect(self, module: AdaptedLinear, x: Tensor, h: Tensor, grad_h: Tensor, grad_y: Tensor) -> None:
        """Implements `Recorder` for lora2r."""
        assert isinstance(module, Lora2rLinear)
        dA, dB = self.index.segment_outer(grad_h, x), self.index.segment_outer(grad_y, h)
        self.kept[module.name] = (module, dA, dB)
        self._views[module.name] = module.state.view

    @torch.no_grad()
    def c_probe(self) -> dict[str, Float[Tensor, "n k"]]:
        """Per module, dL_i/dc for a virtual diagonal c = 1 between A and B: diag(B^T dB_i), without the diagonal.

        B is that of the view that the backward ran in, wherever this is called from.
        """
        return {
            name: einsum(module.factors(self._views[name])[1].to(dB.dtype), dB, "o k, n o k -> n k")
            for name, (module, _, dB) in self.kept.items()
        }

    def route(self, weights: Float[Tensor, "n 2"]) -> None:
        """Adds `sum_i weights[i, block] dA_i, dB_i` to `.grad`, block by block, and forgets what was kept."""
        for module, dA, dB in self.kept.values():
            for block, column in zip(BLOCKS, weights.unbind(dim=1), strict=True):
                k, w = module.block_columns(block), column.to(dA)
                _accumulate(module.A, (k,), einsum(w, dA[:, k], "n, n k i -> k i"))
                _accumulate(module.B, (slice(None), k), einsum(w, dB[..., k], "n, n o k -> o k"))
        self.kept.clear()


def _accumulate(parameter: Tensor, part: tuple[slice, ...], gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad[part] += gradient.to(parameter.dtype)
