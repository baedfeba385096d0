"""Intervals of proportions. Rates here rest on a few dozen problems, so no rate is printed without one."""

from __future__ import annotations

import math


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float] | None:
    """Wilson score interval of k successes in n trials (z = 1.96: 95 %); None where n is 0.

    The Wald interval collapses to a point at 0 of n, which is exactly where a removed behaviour is reported.
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


def proportion(k: int, n: int) -> str:
    """`12/64 .19 [.11, .30]`: count, rate and 95 % Wilson interval as tables print them; `0/0 -` where n is 0."""
    interval = wilson(k, n)
    if interval is None:
        return "0/0 -"
    low, high = interval
    return f"{k}/{n} {_rate(k / n)} [{_rate(low)}, {_rate(high)}]"


def _rate(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1.00"
