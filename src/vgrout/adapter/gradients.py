"""From one backward pass to the blocks' gradients: each rollout's own, or already summed under a known route.

What a backward leaves at an adapted linear (its `Factors`) is enough for every parameter gradient of its adapter, whole
or rollout by rollout or token by token; the adapter's own module knows the formula (`AdaptedLinear.block_gradients`,
`rollout_gradients`). The classes here say what becomes of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from vgrout.adapter.linear import AdaptedLinear, Factors
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

    def collect(self, module: AdaptedLinear, factors: Factors) -> None:
        """Implements `Recorder`."""
        _add(module, factors, self.shares)


class PerRollout:
    """Keeps every rollout's own gradients of this batch until a gate that reads them has decided the route.

    Memory: n times the adapter's size in the compute dtype, for the n rollouts of one micro-batch.
    """

    def __init__(self, index: TokenIndex):
        self.index = index
        self.kept: dict[str, tuple[AdaptedLinear, dict[str, Tensor]]] = {}
        self._views: dict[str, View] = {}

    def collect(self, module: AdaptedLinear, factors: Factors) -> None:
        """Implements `Recorder`."""
        self.kept[module.name] = (module, module.rollout_gradients(factors, self.index))
        self._views[module.name] = module.state.view

    @torch.no_grad()
    def c_probe(self) -> dict[str, Float[Tensor, "n k"]]:
        """Per module, each rollout's gradient in the routing coordinates (`AdaptedLinear.probe`), in the view that the
        backward ran in, wherever this is called from."""
        return {name: module.probe(own, self._views[name]) for name, (module, own) in self.kept.items()}

    @torch.no_grad()
    def deployed(self) -> dict[str, Float[Tensor, "n d"]]:
        """Per module, each rollout's gradient of the deployed block, flattened as in `Adapter.deployed`."""
        return {
            name: torch.cat(
                [own[t.key][(slice(None), *part)].flatten(1) for t, part in module.parts("deployed")], dim=1
            )
            for name, (module, own) in self.kept.items()
        }

    @torch.no_grad()
    def add(self, weights: Float[Tensor, "n 2"], into: Sums | None = None) -> None:
        """Adds `sum_i weights[i, block] g_i`, block by block, to `.grad` or to the given sums."""
        for block, column in zip(BLOCKS, weights.unbind(dim=1), strict=True):
            at = column.nonzero().flatten()
            if not len(at):
                continue
            for module, own in self.kept.values():
                for t, part in module.parts(block):
                    g = own[t.key][(slice(None), *part)]
                    share, rows = column[at].to(g), at.to(g.device)
                    _accumulate(t.value, part, einsum(share, g[rows], "n, n ... -> ..."), into)

    def route(self, weights: Float[Tensor, "n 2"]) -> None:
        """`add` to `.grad`, and forgets what was kept."""
        self.add(weights)
        self.kept.clear()


class PerToken:
    """Keeps the factors of this batch until a gate has decided what share of each token's gradient each block gets.

    Memory: the activations and their gradients at every adapted linear, for one micro-batch.
    """

    def __init__(self) -> None:
        self.kept: dict[str, tuple[AdaptedLinear, Factors]] = {}

    def collect(self, module: AdaptedLinear, factors: Factors) -> None:
        """Implements `Recorder`."""
        self.kept[module.name] = (module, tuple(f.detach() for f in factors))  # without the graph behind them

    @torch.no_grad()
    def add(self, weights: Float[Tensor, "R L 2"], into: Sums | None = None) -> None:
        """Adds the sum over tokens, weighed block by block, to `.grad` or to the given sums."""
        shares = {block: column.unsqueeze(-1) for block, column in zip(BLOCKS, weights.unbind(dim=-1), strict=True)}
        for module, factors in self.kept.values():
            _add(module, factors, shares, into)

    def route(self, weights: Float[Tensor, "R L 2"]) -> None:
        """`add` to `.grad`, and forgets what was kept."""
        self.add(weights)
        self.kept.clear()


class Probes:
    """Keeps each rollout's gradient in the routing coordinates of the deployed block and nothing else."""

    def __init__(self, index: TokenIndex):
        self.index = index
        self.found: dict[str, Float[Tensor, "n k"]] = {}

    def collect(self, module: AdaptedLinear, factors: Factors) -> None:
        """Implements `Recorder`."""
        self.found[module.name] = self.index.segment_sum(module.token_probe(factors))


class Sums:
    """Gradients that are put aside, because what they must be multiplied with is not known yet."""

    def __init__(self) -> None:
        self.tensors: dict[nn.Parameter, Tensor] = {}

    def of(self, parameter: nn.Parameter) -> Tensor:
        if parameter not in self.tensors:
            self.tensors[parameter] = torch.zeros_like(parameter)
        return self.tensors[parameter]

    @torch.no_grad()
    def flush(self, factor: float) -> None:
        """Adds `factor` times the sums to `.grad`."""
        for parameter, total in self.tensors.items():
            assert parameter.grad is not None
            parameter.grad.add_(total, alpha=factor)


def _add(
    module: AdaptedLinear, factors: Factors, shares: Mapping[str, Tensor | None], into: Sums | None = None
) -> None:
    """The blocks' gradients to `.grad` or the sums, each token weighed with its block's share."""
    for block, share in shares.items():
        gradients = module.block_gradients(factors, block, share)
        for t, part in module.parts(block):
            _accumulate(t.value, part, gradients[t.key], into)


def _accumulate(parameter: nn.Parameter, part: tuple[slice, ...], gradient: Tensor, into: Sums | None = None) -> None:
    if into is not None:
        into.of(parameter)[part] += gradient.to(parameter.dtype)
        return
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad[part] += gradient.to(parameter.dtype)
