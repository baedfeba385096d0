"""Gate: the figure of required gate quality can be read.

- numbers in the figure of gate quality are moved apart, in their order and no further than they must
"""

from __future__ import annotations

import itertools
import random

from _gate import Gate
from vgrout.study.gate_figure import spread

gate = Gate(__doc__)


@gate.invariant("numbers in the figure of gate quality are moved apart, in their order and no further than they must")
def _():
    assert spread([], 1.0) == [] and spread([0.0, 5.0, 9.0], 1.0) == [0.0, 5.0, 9.0]
    assert spread([2.0, 2.0, 2.0], 1.0) == [1.0, 2.0, 3.0]
    draw = random.Random(0)
    for _ in range(50):
        values = sorted(draw.random() for _ in range(12))
        places = spread(values, 0.05)
        assert all(b - a >= 0.05 - 1e-12 for a, b in itertools.pairwise(places)), places
        cost = sum((a - b) ** 2 for a, b in zip(places, values, strict=True))
        for _ in range(200):  # no other places that keep the distance are nearer
            other = [place + draw.gauss(0, 0.01) for place in places]
            if all(b - a >= 0.05 for a, b in itertools.pairwise(other)):
                assert sum((a - b) ** 2 for a, b in zip(other, values, strict=True)) >= cost - 1e-12
    return "50 draws of 12"


if __name__ == "__main__":
    gate.main()
