"""A seeded orthogonal matrix Q that costs little to apply and to hold: random blocks after a random permutation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 64
"""Entries that one block mixes; the last block is smaller where the size is no multiple of it."""


class Rotation(nn.Module):
    """Q x = blockdiag(O, ..., O, O') P x with Haar orthogonal blocks O, O' and a permutation P, all from the seed.

    Every output mixes up to `BLOCK` inputs from random places, at `BLOCK` products an entry instead of the size.
    """

    def __init__(self, size: int, *, seed: int, like: Tensor):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.size, self.whole = size, size // BLOCK * BLOCK
        order = torch.randperm(size, generator=generator)
        self.order: Tensor
        self.back: Tensor
        self.block: Tensor
        self.rest: Tensor
        self.register_buffer("order", order.to(like.device), persistent=False)
        self.register_buffer("back", order.argsort().to(like.device), persistent=False)
        self.register_buffer("block", haar(BLOCK, generator).to(like), persistent=False)
        self.register_buffer("rest", haar(size - self.whole, generator).to(like), persistent=False)

    def forward(self, x: Float[Tensor, "*R m"]) -> Float[Tensor, "*R m"]:
        """Q x."""
        return self._blocks(x[..., self.order], self.block.T.to(x.dtype), self.rest.T.to(x.dtype))

    def inverse(self, y: Float[Tensor, "*R m"]) -> Float[Tensor, "*R m"]:
        """Q^T y."""
        return self._blocks(y, self.block.to(y.dtype), self.rest.to(y.dtype))[..., self.back]

    def _blocks(self, x: Tensor, block: Tensor, rest: Tensor) -> Tensor:
        """Each stretch of x times its block."""
        first = (x[..., : self.whole].unflatten(-1, (-1, BLOCK)) @ block).flatten(-2) if self.whole else x[..., :0]
        return torch.cat([first, x[..., self.whole :] @ rest], dim=-1)


def haar(size: int, generator: torch.Generator) -> Float[Tensor, "m m"]:
    """A Haar-distributed orthogonal matrix: the Q of a Gaussian's QR with the signs of R's diagonal (Mezzadri 2007)."""
    Q, R = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return (Q * torch.sign(torch.diagonal(R))).float()
