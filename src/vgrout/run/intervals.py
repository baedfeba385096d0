"""Intervals of proportions. Rates here rest on a few dozen problems, so no rate is printed without one."""

from __future__ import annotations

import math
from collections.abc import Sequence

Interval = tuple[float, float]

AT_MOST = "at most: none were found; the bound is the upper end of the 95 % Wilson interval"
"""What a table says under zero counts."""


def wilson(k: int | float, n: int | float, z: float = 1.96) -> Interval | None:
    """Wilson score interval of k successes in n trials (z = 1.96: 95 %); None where n is 0.

    The Wald interval collapses to a point at 0 of n, which is exactly where a removed behaviour is reported. n may be an
    effective number of trials, and k the rate times n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"wilson: expected 0 <= k <= n, got k = {k}, n = {n}")
    if n == 0:
        return None
    p, z2 = k / n, z * z
    scale = 1 + z2 / n
    centre = (p + z2 / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / scale
    # At the ends the bound is exactly 0 or 1; rounding would leave 1e-18 or 0.9999999.
    return (0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def clustered(clusters: Sequence[tuple[int, int]]) -> Interval | None:
    """95 % Wilson interval of the pooled rate of clusters, each (successes, trials); None where there is no trial.

    A cluster is a problem that was answered several times. n is replaced by the effective number of trials (Korn and
    Graubard 1998; of seven such intervals Franco et al. 2019 recommend Wilson's form). With one trial each it is `wilson`.
    """
    k, n = sum(hits for hits, _ in clusters), sum(trials for _, trials in clusters)
    effective = effective_number(clusters)
    return wilson(k * effective / n, effective) if n else None


def effective_number(clusters: Sequence[tuple[int, int]]) -> float:
    """How many independent trials these clusters are worth: n / design effect (Kish 1965).

        design effect = m / (m - 1) * sum_i (k_i - p n_i)^2  /  (n / (n - 1) * n p (1 - p))

    for m clusters of k_i successes in n_i trials and the pooled rate p. Kept between m (the answers of a problem are all
    alike) and n (they are independent): chance correlations below 0 must not make an interval narrower. Where p is 0 or 1
    nothing tells the two apart, so it is m, the cautious end.
    """
    filled = [(hits, trials) for hits, trials in clusters if trials]
    k, n, m = sum(hits for hits, _ in filled), sum(trials for _, trials in filled), len(filled)
    if n == m:
        return float(n)
    p = k / n
    if p in (0, 1) or m == 1:
        return float(m)
    between = m / (m - 1) * sum((hits - p * trials) ** 2 for hits, trials in filled)
    effect = between / (n / (n - 1) * n * p * (1 - p))
    return float(min(max(n / effect, m), n)) if effect > 0 else float(n)


def proportion(k: int, n: int, interval: Interval | None = None) -> str:
    """`12/64 .19 [.11, .30]`: count, rate and 95 % interval as tables print them; Wilson's of k and n unless another is given.

    `0/64 at most .06` where nothing was found: a bare zero would claim more than n trials can show. `0/0 -` where n is 0.
    """
    low, high = interval or wilson(k, n) or (0.0, 0.0)
    if n == 0:
        return "0/0 -"
    if k == 0:
        return f"0/{n} at most {short(math.ceil(100 * high - 1e-9) / 100)}"
    return f"{k}/{n} {short(k / n)} [{short(low)}, {short(high)}]"


def short(value: float) -> str:
    """`.19`: a rate as tables print it."""
    return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1.00"
