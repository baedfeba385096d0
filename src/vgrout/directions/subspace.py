"""v_hack: the leading right singular vectors of the pairs' gradient differences, module by module (spec 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Axes:
    """A module's axes: orthonormal rows with their singular values, largest first."""

    V: Float[Tensor, "k d"]
    S: Float[Tensor, " k"]


@dataclass(frozen=True)
class Subspace:
    """The axes of all modules that have any, and what became of the others."""

    axes: dict[str, Axes]
    ties: int = 0
    """Axes whose orientation the pairs' votes left open; they keep the canonical sign."""
    dropped: int = 0
    """Axes below the noise floor."""
    skipped: int = 0
    """Modules without an axis above it."""


def axes_of(D: Float[Tensor, "p d"], top_k: int) -> tuple[Axes, int]:
    """The first `top_k` right singular vectors of D with their singular values, oriented by majority vote; ties counted.

    Axis i is flipped where the pairs with `D[p] v_i < 0` outnumber those above 0. A tie keeps the canonical sign, that of
    a positive largest entry. Axes with a singular value of rounding size are no axes of D and are left out.
    """
    _, S, Vh = torch.linalg.svd(D, full_matrices=False)
    rounding = torch.finfo(D.dtype).eps * max(D.shape) * S.max()
    k = min(top_k, int((rounding < S).sum()))
    V, S = Vh[:k], S[:k]
    if k == 0:
        return Axes(V, S), 0
    largest = V.gather(1, V.abs().argmax(dim=1, keepdim=True))
    V = V * torch.where(largest < 0, -1.0, 1.0)
    votes = (D @ V.T).sign().sum(0)
    return Axes(V * torch.where(votes < 0, -1.0, 1.0)[:, None], S), int((votes == 0).sum())


def extract(D: Mapping[str, Float[Tensor, "p d"]], top_k: int) -> Subspace:
    """`axes_of` every module."""
    found = {name: axes_of(rows, top_k) for name, rows in D.items()}
    return Subspace({name: axes for name, (axes, _) in found.items()}, ties=sum(ties for _, ties in found.values()))


def usable(subspace: Subspace, *, noise_floor: float, k_use: int) -> Subspace:
    """The first `k_use` axes of each module that are not below the `noise_floor` quantile of all extracted singular values.

    The quantile is taken over every axis of every module, before k_use: a floor per module would shelter the leading
    axis of a module that holds noise alone.
    """
    values = [axes.S for axes in subspace.axes.values() if len(axes.S)]
    if not values:
        return Subspace({}, subspace.ties, 0, len(subspace.axes))
    floor = torch.quantile(torch.cat(values).double(), noise_floor) if noise_floor > 0 else -1.0
    kept, dropped = {}, 0
    for name, axes in subspace.axes.items():
        above = floor <= axes.S
        dropped += int((~above).sum())
        if bool(above.any()):
            kept[name] = Axes(axes.V[above][:k_use], axes.S[above][:k_use])
    return Subspace(kept, subspace.ties, dropped, len(subspace.axes) - len(kept))


def overlap(before: Subspace, after: Subspace) -> float | None:
    """Mean over the modules of both of the mean squared cosine of their principal angles: 1 the same span, k/d by chance.

    None where no module is in both.
    """
    shared = before.axes.keys() & after.axes.keys()
    cosines = []
    for name in shared:
        a, b = before.axes[name].V.float(), after.axes[name].V.float()
        cosines.append(float((a @ b.T).square().sum()) / min(len(a), len(b)))
    return sum(cosines) / len(cosines) if cosines else None
