"""Where a direction comes from: the pairs as they are, or one of the placebos, none of which sees a true pair label.

    real            the pairs as written
    shuffled:SEED   exactly half of the pairs (drawn by SEED; one dropped where their number is odd) have their sides
                    exchanged before anything is computed from them
    haar:SEED       axes and unit vectors are Haar draws; whatever else is taken from pairs (singular values, edges, the
                    choice of modules) is of pairs half of which, drawn anew for each module, have their sides exchanged
    random_label    the pairs as written; the labels that a gate finds are permuted among the rows of a step, so that what
                    is routed has nothing to do with them
    content:FILE    the pairs of FILE, whose contrast has nothing to do with hacking
    oracle:FILE     pairs made of ground-truth-labelled rollouts: an upper bound, marked as such

Exchanging sides changes the sign of a row of D. Its right singular vectors and values stay, so for v_hack `shuffled` is
the real subspace with other orientations: a placebo of the orientation, which is all that `one_sided` reads of the labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vgrout.directions.gradient import Gradients
from vgrout.directions.pairs import Pair
from vgrout.types import UserError, View

Kind = Literal["real", "haar", "shuffled", "content", "oracle", "random_label"]

PLAIN = ("real", "random_label")
"""Kinds that take neither a seed nor a file."""


@dataclass(frozen=True)
class Source:
    """A parsed `--direction`."""

    kind: Kind = "real"
    seed: int = 0
    file: str = ""

    @property
    def upper_bound(self) -> bool:
        """Whether ground truth made it."""
        return self.kind == "oracle"

    def __str__(self) -> str:
        if self.kind in PLAIN:
            return self.kind
        return f"{self.kind}:{self.file}" if self.file else f"{self.kind}:{self.seed}"


def parse_source(text: str) -> Source:
    """`UserError` where the text is none of the forms above."""
    kind, colon, rest = text.partition(":")
    forms = "real, random_label, haar:SEED, shuffled:SEED, content:FILE, oracle:FILE"
    if kind not in get_args(Kind) or (kind in PLAIN) == bool(colon) or (colon and not rest):
        raise UserError(f"--direction {text}: expected one of {forms}")
    if kind in PLAIN:
        return Source(kind)
    if kind in ("haar", "shuffled"):
        if not rest.isdecimal() or int(rest) >= 2**63:
            raise UserError(f"--direction {text}: {rest!r} is no seed; expected a whole number, as in {kind}:0")
        return Source(kind, seed=int(rest))
    return Source(kind, file=rest)  # ty: ignore[invalid-argument-type]


def relabelled(pairs: Sequence[Pair], source: Source) -> tuple[Pair, ...]:
    """The pairs that a direction of this source is made from: half of them exchanged where it is `shuffled`."""
    if source.kind != "shuffled":
        return tuple(pairs)
    swap = half(len(pairs) // 2 * 2, _generator(source.seed, "pairs"))
    return tuple(pair.swapped() if s else pair for pair, s in zip(pairs, swap.tolist(), strict=False))


def blinded(gradients: Gradients, source: Source) -> Gradients:
    """The gradients as a source lets them be seen (`blinded_sides`)."""
    return Gradients(blinded_sides(gradients.deployed, source), blinded_sides(gradients.probe, source))


def blinded_sides(found: Mapping[str, Float[Tensor, "2 p *d"]], source: Source) -> dict[str, Float[Tensor, "2 q *d"]]:
    """Both sides of every pair with those of half of the pairs exchanged, module by module, where the source is `haar`."""
    if source.kind != "haar":
        return dict(found)
    out = {}
    for name, g in found.items():
        even = g.shape[1] // 2 * 2
        swap = half(even, _generator(source.seed, f"swap {name}")).view(1, even, *[1] * (g.ndim - 2))
        out[name] = torch.where(swap, g[:, :even].flip(0), g[:, :even])
    return out


def permuted(advantages: Float[Tensor, " N"], views: Sequence[View], seed: int, step: int) -> Int[Tensor, " N"]:
    """`random_label`: whose label each row gets. Rows of non-zero advantage that were sampled in one view exchange labels."""
    order = torch.arange(len(views))
    generator = _generator(seed, f"labels of step {step}")
    moving = advantages != 0
    for view in sorted(set(views)):
        at = (moving & torch.tensor([v == view for v in views])).nonzero().flatten()
        order[at] = at[torch.randperm(len(at), generator=generator)]
    return order


def half(n: int, generator: torch.Generator) -> Tensor:
    """[n] booleans of which exactly half (n is even) are true."""
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[torch.randperm(n, generator=generator)[: n // 2]] = True
    return chosen


def haar_axes(like: Float[Tensor, "k d"], seed: int, name: str) -> Float[Tensor, "k d"]:
    """k orthonormal rows of a Haar-random subspace of the module's space."""
    if not len(like):
        return like
    draw = torch.randn(like.shape[1], len(like), generator=_generator(seed, f"axes {name}"), dtype=torch.float64)
    Q, R = torch.linalg.qr(draw)
    return (Q * torch.sign(torch.diagonal(R))).T.to(like)


def haar_unit(size: int, seed: int, name: str) -> Float[Tensor, " d"]:
    """A uniformly drawn unit vector."""
    draw = torch.randn(size, generator=_generator(seed, name), dtype=torch.float64)
    return (draw / draw.norm()).float()


def _generator(seed: int, what: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
