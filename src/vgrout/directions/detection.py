"""How well scores tell positives from the rest: AUROC, F0.5, their spread. Pure functions; a column is one direction.

AUROC is the share of pairs (a positive, another row) in which the positive scores higher, ties counting half: the
Mann-Whitney U over n+ n-. Stratified, it counts only pairs of one stratum, so what differs between strata adds nothing.

    F0.5 = 1.25 tp / (1.25 tp + .25 fn + fp) = 1.25 tp / (called + .25 positives)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NAN = float("nan")


def auroc(
    scores: Float[Tensor, "n k"], positive: Bool[Tensor, " n"], strata: Int[Tensor, " n"] | None = None
) -> Float[Tensor, " k"]:
    """AUROC of each column, within strata where they are given; nan where there is no pair, and for a column with a nan."""
    won, pairs = torch.zeros(scores.shape[1], dtype=torch.float64), 0
    for rows in _strata(positive, strata):
        pos = scores[rows & positive].T.contiguous()
        neg = scores[rows & ~positive].T.contiguous().sort(dim=1).values
        below = torch.searchsorted(neg, pos, right=False) + torch.searchsorted(neg, pos, right=True)
        won += below.double().sum(dim=1) / 2
        pairs += pos.shape[1] * neg.shape[1]
    value = won / pairs if pairs else torch.full_like(won, NAN)
    return torch.where(scores.isnan().any(dim=0), NAN, value)


def _strata(positive: Bool[Tensor, " n"], strata: Int[Tensor, " n"] | None) -> list[Bool[Tensor, " n"]]:
    if strata is None:
        return [torch.ones_like(positive)]
    return [strata == value for value in strata.unique().tolist()]


def best_f_half(scores: Float[Tensor, "n k"], positive: Bool[Tensor, " n"]) -> Float[Tensor, " k"]:
    """The largest F0.5 over all thresholds of each column: chosen with the labels, so optimistic for every direction alike.

    nan without a positive and for a column with a nan.
    """
    total = int(positive.sum())
    if total == 0:
        return torch.full((scores.shape[1],), NAN, dtype=torch.float64)
    ordered, order = scores.sort(dim=0, descending=True)
    called = torch.arange(1, len(scores) + 1, dtype=torch.float64)[:, None]
    f = 1.25 * positive[order].double().cumsum(dim=0) / (called + 0.25 * total)
    inside_tie = torch.zeros_like(ordered, dtype=torch.bool)
    inside_tie[:-1] = ordered[:-1] == ordered[1:]  # a threshold cannot part rows of the same score
    best = f.masked_fill(inside_tie, 0.0).max(dim=0).values
    return torch.where(scores.isnan().any(dim=0), NAN, best)


def f_half_at(
    scores: Float[Tensor, "n k"], positive: Bool[Tensor, " n"], threshold: float = 1.0
) -> Float[Tensor, " k"]:
    """F0.5 of calling every row at or above the threshold; nan without a positive and for a column with a nan."""
    called = scores >= threshold
    tp = (called & positive[:, None]).double().sum(dim=0)
    f = 1.25 * tp / (called.double().sum(dim=0) + 0.25 * float(positive.sum()))
    undefined = scores.isnan().any(dim=0) | (not bool(positive.any()))
    return torch.where(undefined, NAN, f)


def resample_counts(clusters: Sequence[str], draws: int, seed: int) -> Float[Tensor, "b n"]:
    """How often each row occurs when its cluster is drawn with replacement: rows of one problem share their count."""
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(names), (draws, len(names)), generator=generator)
    counts = torch.zeros(draws, len(names)).scatter_add_(1, chosen, torch.ones(chosen.shape))
    return counts[:, [names[name] for name in clusters]]


def resampled_auroc(
    scores: Float[Tensor, " n"],
    positive: Bool[Tensor, " n"],
    counts: Float[Tensor, "b n"],
    strata: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, " b"]:
    """`auroc` of one column under each row of counts; nan where a resample leaves no pair."""
    won, pairs = torch.zeros(len(counts), dtype=torch.float64), torch.zeros(len(counts), dtype=torch.float64)
    for rows in _strata(positive, strata):
        values, place = scores[rows].unique(return_inverse=True)
        weights, hit = counts[:, rows].double(), positive[rows].double()
        zero = torch.zeros(len(counts), len(values), dtype=torch.float64)
        pos = zero.index_add(1, place, weights * hit)
        neg = zero.index_add(1, place, weights * (1 - hit))
        won += (pos * (neg.cumsum(dim=1) - neg / 2)).sum(dim=1)
        pairs += pos.sum(dim=1) * neg.sum(dim=1)
    return torch.where(pairs > 0, won / pairs, NAN)


def percentiles(values: Float[Tensor, " n"], at: Sequence[float] = (2.5, 50.0, 97.5)) -> list[float | None]:
    """Percentiles of what is defined among the values; None where nothing is."""
    found = values[~values.isnan()].double()
    if not len(found):
        return [None] * len(at)
    return torch.quantile(found, torch.tensor(at, dtype=torch.float64) / 100).tolist()


def ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ranks from 1, ties at their mean."""
    ordered = values.contiguous().sort().values
    low = torch.searchsorted(ordered, values.contiguous(), right=False)
    high = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (low + 1 + high).double() / 2


def rank_correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float | None:
    """Spearman's: the correlation of the ranks; None where one of them is constant."""
    x, y = (ranks(v) - ranks(v).mean() for v in (a, b))
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else None
