"""Ten SIGKILLs at random instants, one in each phase, of runs of the other interventions.

Invariants:
- each killed run, resumed, has the weights, metrics, rollouts and evaluation of the unbroken one
"""

from __future__ import annotations

from _gate import Gate
from _resuming import CASES, ten_kills

gate = Gate(__doc__)
KILLED = ("none", "erase", "none_full", "advantage_mod", "penalty", "screening")


@gate.invariant(
    "killed at a random instant of every phase, runs of the other interventions end as unbroken ones", slow=True
)
def _():
    assert set(KILLED) <= CASES.keys()
    return ten_kills(KILLED)


if __name__ == "__main__":
    gate.main()
