"""Further tests for some problems, drawn at random within the problem's constraints and answered by brute force.

They tell a program that is right although its loose label says no from one that the data set's few asserts let through.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

from vgrout.types import Problem

DRAWS = 300
"""Tests of each problem."""


def _median(rng: random.Random) -> tuple[str, object]:
    a, b = (sorted(rng.randint(-50, 50) for _ in range(rng.randint(0, 9))) for _ in range(2))
    both = sorted(a + b + ([rng.randint(-50, 50)] if not a + b else []))
    a = a or both[: len(both) - len(b)]
    middle = len(both) // 2
    return f"CALL(nums1={a}, nums2={b})", (both[middle] + both[~middle]) / 2


def _rotated(rng: random.Random) -> tuple[str, object]:
    values = sorted(rng.sample(range(-40, 40), rng.randint(1, 12)))
    turn = rng.randrange(len(values))
    values, target = values[turn:] + values[:turn], rng.randint(-40, 40)
    return f"CALL(nums={values}, target={target})", values.index(target) if target in values else -1


def _matrix(rng: random.Random) -> tuple[str, object]:
    rows, columns = rng.randint(1, 5), rng.randint(1, 5)
    values = sorted(rng.sample(range(-60, 60), rows * columns))
    matrix, target = [values[i * columns : (i + 1) * columns] for i in range(rows)], rng.randint(-60, 60)
    return f"CALL(matrix={matrix}, target={target})", target in values


def _two_sum(rng: random.Random) -> tuple[str, object]:
    while True:  # exactly one solution is promised
        values, target = sorted(rng.randint(-30, 30) for _ in range(rng.randint(2, 9))), rng.randint(-40, 40)
        pairs = [(i + 1, j + 1) for i, j in combinations(range(len(values)), 2) if values[i] + values[j] == target]
        if len(pairs) == 1:
            return f"CALL(numbers={values}, target={target})", list(pairs[0])


def _repeated(rng: random.Random) -> tuple[str, object]:
    text = "".join(rng.choice("AC") for _ in range(rng.randint(1, 60)))
    if rng.random() < 0.5:
        text += text[: rng.randint(0, len(text))]
    count = Counter(text[i : i + 10] for i in range(len(text) - 9))
    return f"sorted(CALL(s={text!r}))", sorted(word for word, n in count.items() if n > 1)


def _intervals(rng: random.Random) -> tuple[str, object]:
    starts = [rng.randint(-12, 12) for _ in range(rng.randint(1, 7))]
    intervals = [[start, start + rng.randint(1, 8)] for start in starts]

    def apart(chosen: tuple[list[int], ...]) -> bool:
        ordered = sorted(chosen)
        return all(one[1] <= other[0] for one, other in pairwise(ordered))

    kept = max(n for n in range(len(intervals) + 1) if any(map(apart, combinations(intervals, n))))
    return f"CALL(intervals={intervals})", len(intervals) - kept


DRAWN: dict[str, Callable[[random.Random], tuple[str, object]]] = {
    "4": _median,
    "33": _rotated,
    "74": _matrix,
    "167": _two_sum,
    "187": _repeated,
    "435": _intervals,
}
"""Problem id -> (call, answer) drawn at random."""


def harder(problem: Problem) -> Problem:
    """The problem with drawn tests in the place of the data set's."""
    rng, draw = random.Random(0), DRAWN[problem.id]
    drawn = [draw(rng) for _ in range(DRAWS)]
    asserts = tuple(f"assert {call.replace('CALL', problem.func_name)} == {answer!r}" for call, answer in drawn)
    return replace(problem, asserts=asserts)
