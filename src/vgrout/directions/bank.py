"""Many directions of one kind side by side, with their band edges, and the scores of rows against all of them at once.

Every direction but a Haar draw is a weighted sum of the pairs' differences, so it is a row of weights over the pairs:
1 a pair as it is, -1 one whose sides are exchanged, 0 one that is left out. Edges (spec 5.1, pairs p75) see the pairs as
the weights have them, so a placebo's edges know no true label either.

    mean score    (1/M) sum_m cos_m                                       of a module without gradient: cos_m = 0
    pooled score  sum_m (cos_m - lower_m) / sum_m (upper_m - lower_m)     over modules with lower_m < upper_m
    lower, upper  75th percentiles of the cosines of the clean and of the hack completions

The draws are the placebos themselves: haar draw s is `haar:s`, shuffled draw s is `shuffled:s`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.directions.gradient import Gradients
from vgrout.directions.pairs import Pair
from vgrout.directions.placebo import Source, blinded, haar_unit, relabelled

EDGE = 0.75
"""Quantile of the pairs' cosines at which a band begins and ends."""


@dataclass(frozen=True)
class Bank:
    """n directions: per module their unit vectors (zero rows where there is none) and the edges of their bands."""

    V: dict[str, Float[Tensor, "n d"]]
    lower: dict[str, Float[Tensor, " n"]]
    upper: dict[str, Float[Tensor, " n"]]


@dataclass(frozen=True)
class Scores:
    """Of every row against every direction; a direction with no band has no pooled score (nan)."""

    mean: Float[Tensor, "N n"]
    pooled: Float[Tensor, "N n"]


def unit_rows(x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Rows of length 1, in fp64; a zero row stays zero, so that it has cosine 0 with everything."""
    x = x.double()
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm, 0.0)


def shuffled_weights(pairs: Sequence[Pair], draws: int) -> Float[Tensor, "draws p"]:
    """Weights of `shuffled:0`, `shuffled:1`, ... of these pairs: +-1, half each, and 0 for one that is dropped."""
    weights = torch.zeros(draws, len(pairs), dtype=torch.float64)
    for seed in range(draws):
        as_used = relabelled(pairs, Source("shuffled", seed=seed))
        signs = [1.0 if mine is given else -1.0 for mine, given in zip(as_used, pairs, strict=False)]
        weights[seed, : len(signs)] = torch.tensor(signs, dtype=torch.float64)
    return weights


def pair_bank(sides: Mapping[str, Float[Tensor, "2 p d"]], weights: Float[Tensor, "n p"]) -> Bank:
    """Directions that are weighted means of the differences of these pairs."""
    V, lower, upper = {}, {}, {}
    for name, g in sides.items():
        V[name] = unit_rows(weights @ (g[0] - g[1]).double())
        lower[name], upper[name] = edges(g, V[name], weights)
    return Bank(V, lower, upper)


def haar_bank(sides: Mapping[str, Float[Tensor, "2 p d"]], what: str, draws: int) -> Bank:
    """`haar:0`, `haar:1`, ...: Haar vectors, and edges of pairs half of which are exchanged, drawn anew for each module.

    `what` is the name under which the extraction draws: `v_grad VIEW` or `v_act`.
    """
    V, lower, upper = {}, {}, {}
    for name, g in sides.items():
        V[name] = torch.stack([haar_unit(g.shape[-1], seed, f"{what} {name}") for seed in range(draws)]).double()
        lower[name], upper[name] = edges(g, V[name], _blind_weights(name, g.shape[1], draws))
    return Bank(V, lower, upper)


@lru_cache(maxsize=2048)
def _blind_weights(name: str, pairs: int, draws: int) -> Float[Tensor, "draws p"]:
    """Which pairs of a module a Haar placebo exchanges, asked of `blinded` itself with marked sides."""
    marked = torch.tensor([1.0, -1.0]).view(2, 1, 1).expand(2, pairs, 1)
    weights = torch.zeros(draws, pairs, dtype=torch.float64)
    for seed in range(draws):
        exchanged = blinded(Gradients({}, {name: marked}), Source("haar", seed=seed)).probe[name][0, :, 0]
        weights[seed, : len(exchanged)] = exchanged.double()
    return weights


def edges(
    g: Float[Tensor, "2 p d"], V: Float[Tensor, "n d"], weights: Float[Tensor, "n p"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """(lower, upper) of each direction, from the sides as its weights have them."""
    cosines = unit_rows(g) @ V.T
    w = weights.T
    seen = torch.where(w < 0, cosines.flip(0), cosines).masked_fill(w == 0, float("nan"))
    return seen[1].nanquantile(EDGE, dim=0), seen[0].nanquantile(EDGE, dim=0)


def joined(banks: Sequence[Bank]) -> Bank:
    """The directions of all banks, one behind the other."""
    names = banks[0].V
    return Bank(
        {name: torch.cat([b.V[name] for b in banks]) for name in names},
        {name: torch.cat([b.lower[name] for b in banks]) for name in names},
        {name: torch.cat([b.upper[name] for b in banks]) for name in names},
    )


def score_rows(features: Mapping[str, Float[Tensor, "N d"]], bank: Bank) -> Scores:
    """Scores of rows by their features per module."""
    first = next(iter(features))
    shape = (len(features[first]), len(bank.V[first]))
    total, above, width = (torch.zeros(size, dtype=torch.float64) for size in (shape, shape, shape[1]))
    for name, f in features.items():
        cosines = unit_rows(f) @ bank.V[name].T
        lower, upper = bank.lower[name], bank.upper[name]
        band = upper > lower
        total += cosines
        above += torch.where(band, cosines - lower, 0.0)
        width += torch.where(band, upper - lower, 0.0)
    return Scores(total / len(features), torch.where(width > 0, above / width, float("nan")))
