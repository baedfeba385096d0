"""The matched random removal: what is subtracted has a quarantine's singular values, but nothing else of it.

    R = U diag(s) V^T,     s the singular values of the quarantine's net change of one weight, U and V Haar-random

Equal singular values make the removal of equal size in every norm that does not depend on the axes. U and V come from the
name of the module and a seed alone, so the same seed removes the same matrix on every machine, up to rounding.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor


def product_singular_values(B: Float[Tensor, "o k"], A: Float[Tensor, "k i"]) -> Float[Tensor, " k"]:
    """Singular values of B A, from two thin QR decompositions and one of k x k: B A itself is never formed."""
    B, A = B.double(), A.double()
    left, right = (torch.linalg.qr(thin, mode="r").R for thin in (B, A.T))
    return torch.linalg.svdvals(left @ right.T)


def random_factors(
    values: Float[Tensor, " k"], shape: tuple[int, int], *, seed: int, name: str
) -> tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]:
    """(A, B) with B A = U diag(values) V^T of that shape, in the dtype and on the device of `values`."""
    digest = hashlib.sha256(f"random removal {seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    d_out, d_in = shape
    U = haar_frame(d_out, generator, like=values)
    V = haar_frame(d_in, generator, like=values)
    return V.T, U * values


def haar_frame(size: int, generator: torch.Generator, *, like: Float[Tensor, " k"]) -> Float[Tensor, "n k"]:
    """As many orthonormal columns as `like` has entries, Haar-distributed: the Q of a Gaussian's QR with the signs of
    R's diagonal (Mezzadri 2007).

    Numbers are drawn on the host in fp32, whatever `like` is; the decomposition, which is what many columns cost, runs
    where `like` lies and in its dtype.
    """
    draw = torch.randn(size, len(like), generator=generator).to(like)
    Q, R = torch.linalg.qr(draw)
    return Q * torch.sign(torch.diagonal(R))
