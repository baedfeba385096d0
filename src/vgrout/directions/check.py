"""Does a direction hold on pairs that it was not made from? Held-out folds, and each pair left out in turn (spec 4.5).

Unit of the held-out test is the module: its figure is the mean over the folds of

    cos(mean D of the held-out pairs, direction of the training pairs)

Without any signal half of the modules are above 0. Modules share pairs and layers, so they are no independent draws and
the binomial bound alone would be too easy; the shuffled placebo has the same dependence and gives the other bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vgrout.directions.bank import haar_bank, shuffled_weights, unit_rows
from vgrout.directions.config import ExtractionConfig
from vgrout.directions.detection import auroc, percentiles
from vgrout.directions.pairs import Pair
from vgrout.directions.subspace import Axes, extract, usable


@dataclass(frozen=True)
class HeldOut:
    """The held-out test in one kind of coordinates."""

    cosines: dict[str, float]
    """Each module's figure."""
    zero_norm: int
    """Modules whose pairs have no mean difference: they score 0 and count as not above 0."""
    fraction: float
    mean: float
    median: float
    null: float
    """Size of a cosine with one axis by chance, 1/sqrt(d), averaged over modules."""
    bound: float
    """Binomial: a fraction of half would stay at or below it 95 times in 100 if modules were independent."""
    haar: float
    """95th percentile of the fraction over Haar draws."""
    shuffled: float
    """95th percentile of the fraction over draws of exchanged sides."""
    shares: dict[str, float]
    """Subspace shares |relu(V D)|/|D| and |V D|/|D| with their nulls, where the direction has several axes."""

    @property
    def needed(self) -> float:
        """What the fraction has to exceed."""
        return max(self.bound, self.haar, self.shuffled)

    @property
    def passed(self) -> bool:
        return self.fraction > self.needed


@dataclass(frozen=True)
class LeaveOneOut:
    """Scores of each pair against the direction of the others: (hack, clean) per pair, and what they come to."""

    hack: list[float]
    clean: list[float]
    values: dict[str, float]
    """`paired`: share of pairs whose hack scores above its own clean; `threshold`: share that the midpoint of the other
    pairs' means parts; `auroc` over all left-out scores."""
    haar: dict[str, float]
    shuffled: dict[str, float]
    """95th percentiles of the same over draws."""
    families: dict[str, dict[str, float]]

    def needed(self, name: str) -> float:
        return max(self.haar[name], self.shuffled[name])

    @property
    def passed(self) -> bool:
        return all(self.values[name] > self.needed(name) for name in ("paired", "auroc"))


def binomial_bound(n: int, level: float = 0.95) -> float:
    """The least k/n with P(X <= k) >= level for X ~ Binomial(n, 1/2), by exact sums of whole numbers."""
    parts = 10**6
    wanted, below = round(level * parts) * 2**n, 0
    for k in range(n + 1):
        below += math.comb(n, k)
        if below * parts >= wanted:
            return k / n
    raise ValueError(f"binomial bound: n {n} and level {level} have none; expected n at least 1 and a level up to 1")


def folds(families: Sequence[str], held_out: float, seed: int) -> Int[Tensor, " p"]:
    """The fold of each pair: about 1/held_out of them, every family spread evenly, sizes within one of each other.

    Each family's pairs are shuffled by the seed and dealt in turn; the next family goes on where the last one stopped.
    """
    number = min(max(2, round(1 / held_out)), len(families))
    generator = torch.Generator().manual_seed(seed)
    fold, dealt = torch.zeros(len(families), dtype=torch.long), 0
    for family in dict.fromkeys(families):
        members = torch.tensor([i for i, name in enumerate(families) if name == family])
        for i in members[torch.randperm(len(members), generator=generator)].tolist():
            fold[i], dealt = dealt % number, dealt + 1
    return fold


def _summary(
    cosines: Mapping[str, float],
    zero_norm: int,
    sizes: Sequence[int],
    haar: Float[Tensor, "M draws"],
    shuffled: Float[Tensor, "M draws"],
    shares: dict[str, float],
) -> HeldOut:
    values = torch.tensor(list(cosines.values()), dtype=torch.float64)
    quantile = lambda placebo: percentiles((placebo > 0).double().mean(dim=0), [95.0])[0] or 0.0  # noqa: E731
    return HeldOut(
        cosines=dict(cosines),
        zero_norm=zero_norm,
        fraction=float((values > 0).double().mean()),
        mean=float(values.mean()),
        median=float(values.quantile(0.5)),
        null=sum(d**-0.5 for d in sizes) / len(sizes),
        bound=binomial_bound(len(values)),
        haar=quantile(haar),
        shuffled=quantile(shuffled),
        shares=shares,
    )


def held_out_routing(
    sides: Mapping[str, Float[Tensor, "2 p d"]], pairs: Sequence[Pair], fold: Int[Tensor, " p"], draws: int
) -> HeldOut:
    """The held-out test of v_grad (view deploy), in the routing coordinates."""
    number = int(fold.max()) + 1
    real = torch.stack([fold != k for k in range(number)]).double()
    signs = torch.zeros(number, draws, len(pairs), dtype=torch.float64)
    for k in range(number):
        train = fold != k
        signs[k][:, train] = shuffled_weights([p for p, t in zip(pairs, train.tolist(), strict=True) if t], draws)
    random = haar_bank(sides, "v_grad deploy", draws).V
    cosines, haar, shuffled, zero = {}, [], [], 0
    for name, g in sides.items():
        D = (g[0] - g[1]).double()
        held = unit_rows((1 - real) @ D)
        cosines[name] = float((unit_rows(real @ D) * held).sum(dim=1).mean())
        shuffled.append((unit_rows(signs @ D) * held[:, None]).sum(dim=2).mean(dim=0))
        haar.append((random[name] @ held.T).mean(dim=1))
        zero += not bool(D.mean(dim=0).any())
    sizes = [g.shape[-1] for g in sides.values()]
    return _summary(cosines, zero, sizes, torch.stack(haar), torch.stack(shuffled), {})


def held_out_erase(
    D: Mapping[str, Float[Tensor, "p d"]],
    pairs: Sequence[Pair],
    fold: Int[Tensor, " p"],
    config: ExtractionConfig,
    draws: int,
    seed: int,
) -> HeldOut:
    """The held-out test of v_hack: cosines with its first axis, and the subspace shares of the axes that are in use.

    Exchanged sides leave the singular vectors and turn the votes, so a shuffled draw is the first axis with its sign voted
    anew. The cosine of a fixed vector u with a Haar axis has the law of |u| z / sqrt(z^2 + chi^2(d - 1)), z normal, and
    is drawn from it: vectors of the size of a module's parameters need not be made.
    """
    cosines, turned = dict.fromkeys(D, 0.0), {name: torch.zeros(draws, dtype=torch.float64) for name in D}
    size = {name: torch.zeros(rows.shape[1], dtype=torch.float64) for name, rows in D.items()}
    shares: list[tuple[float, ...]] = []
    number = int(fold.max()) + 1
    for k in range(number):
        train = fold != k
        signs = shuffled_weights([p for p, t in zip(pairs, train.tolist(), strict=True) if t], draws)
        subspace = extract({name: rows[train] for name, rows in D.items()}, config.top_k)
        used = usable(subspace, noise_floor=config.noise_floor, k_use=config.k_use).axes
        for name, rows in D.items():
            held = unit_rows(rows[~train].double().mean(dim=0))
            size[name] += held / number
            if len(subspace.axes[name].V):
                first = subspace.axes[name].V[0]
                value = float(first.double() @ held) / number
                cosines[name] += value
                turned[name] += value * _voted(rows[train] @ first, first, signs)
            if name in used:
                shares.append(_shares(used[name], held))
    generator = np.random.default_rng(seed)
    haar = torch.stack([haar_cosines(float(u.norm()), len(u), draws, generator) for u in size.values()])
    zero = sum(not bool(rows.double().mean(dim=0).any()) for rows in D.values())
    names = ("one_sided", "two_sided", "one_sided_null", "two_sided_null")
    means = dict(zip(names, np.mean(shares, axis=0).tolist() if shares else [math.nan] * 4, strict=True))
    return _summary(
        cosines, zero, [rows.shape[1] for rows in D.values()], haar, torch.stack(list(turned.values())), means
    )


def _voted(
    along: Float[Tensor, " p"], axis: Float[Tensor, " d"], signs: Float[Tensor, "draws p"]
) -> Float[Tensor, " draws"]:
    """+-1 per draw: how the vote of pairs with exchanged sides turns an axis; a tie gives its canonical sign."""
    canonical = 1.0 if float(axis[axis.abs().argmax()]) >= 0 else -1.0
    votes = (signs @ along.double().sign()).sign()
    return torch.where(votes == 0, canonical, votes)


def _shares(axes: Axes, held: Float[Tensor, " d"]) -> tuple[float, float, float, float]:
    """|relu(V u)|, |V u| of a unit vector u, and their nulls sqrt(k/2d), sqrt(k/d)."""
    c = axes.V.double() @ held
    k, d = axes.V.shape
    return float(c.relu().norm()), float(c.norm()), math.sqrt(k / (2 * d)), math.sqrt(k / d)


def haar_cosines(norm: float, d: int, draws: int, generator: np.random.Generator) -> Float[Tensor, " draws"]:
    """Products of one vector of this norm with Haar unit vectors of its space, from their law."""
    z, rest = generator.standard_normal(draws), generator.chisquare(max(d - 1, 1), draws) * (d > 1)
    return torch.from_numpy(norm * z / np.sqrt(z**2 + rest))


def leave_one_out(sides: Mapping[str, Float[Tensor, "2 p d"]], pairs: Sequence[Pair], draws: int) -> LeaveOneOut:
    """Each pair scored against the direction of the others, mean over modules of cosines."""
    n = len(pairs)
    others = ~torch.eye(n, dtype=torch.bool)
    signs = torch.zeros(n, draws, n, dtype=torch.float64)
    for p in range(n):
        signs[p][:, others[p]] = shuffled_weights([q for i, q in enumerate(pairs) if i != p], draws)
    real = _pair_scores(sides, others.double()[None])
    shuffled = _pair_scores(sides, signs.transpose(0, 1))
    random = haar_bank(sides, "v_grad deploy", draws).V
    fixed = torch.stack([torch.einsum("spd,nd->nsp", unit_rows(g), random[name]) for name, g in sides.items()])
    haar = fixed.mean(dim=0)[:, None].expand(draws, n, 2, n)
    own = real[0].diagonal(dim1=0, dim2=2)  # [2, p]
    families = {}
    for family in dict.fromkeys(pair.family for pair in pairs):
        members = torch.tensor([pair.family == family for pair in pairs])
        families[family] = {name: float(v[0]) for name, v in _separation(real, members).items()}
    upper = lambda s: {k: percentiles(v, [95.0])[0] or 0.0 for k, v in _separation(s).items()}  # noqa: E731
    return LeaveOneOut(
        hack=own[0].tolist(),
        clean=own[1].tolist(),
        values={name: float(v[0]) for name, v in _separation(real).items()},
        haar=upper(haar),
        shuffled=upper(shuffled),
        families=families,
    )


def _pair_scores(
    sides: Mapping[str, Float[Tensor, "2 p d"]], weights: Float[Tensor, "n p p"]
) -> Float[Tensor, "n p 2 p"]:
    """[draw, left out, side, pair]: scores of all pairs against the directions of the weights' rows."""
    n, p, _ = weights.shape
    total = torch.zeros(n, p, 2, p, dtype=torch.float64)
    for g in sides.values():
        V = unit_rows(weights @ (g[0] - g[1]).double())
        total += torch.einsum("sqd,npd->npsq", unit_rows(g), V)
    return total / len(sides)


def _separation(
    scores: Float[Tensor, "n p 2 p"], members: Bool[Tensor, " p"] | None = None
) -> dict[str, Float[Tensor, " n"]]:
    """The figures of `LeaveOneOut.values` per draw, over the left-out pairs that are `members` (default: all).

    The midpoint of the other pairs' two means is the mean of their scores, whatever their labels.
    """
    p = scores.shape[1]
    own = scores.diagonal(dim1=1, dim2=3).transpose(1, 2)  # [n, p, 2]
    middle = (scores.sum(dim=(2, 3)) - own.sum(dim=2)) / (2 * (p - 1))
    if members is not None:
        own, middle = own[:, members], middle[:, members]
    hack, clean = own.unbind(dim=2)
    positive = torch.arange(2 * hack.shape[1]) < hack.shape[1]
    return {
        "paired": (hack > clean).double().mean(dim=1),
        "threshold": ((hack > middle) & (middle > clean)).double().mean(dim=1),
        "auroc": auroc(torch.cat([hack, clean], dim=1).T, positive),
    }
