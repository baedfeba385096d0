"""Built-in problems, hard, second part."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations
from random import Random

from .authored import Authored, letters, numbers


def _seatings(n: int, rivals: list[list[int]]) -> int:
    pairs = {frozenset(pair) for pair in rivals}
    return sum(all(frozenset(p) not in pairs for p in pairwise(order)) for order in permutations(range(n)))


def _rivals(rng: Random) -> tuple[int, list[list[int]]]:
    n = rng.randint(3, 6)
    pairs = [[a, b] for a, b in combinations(range(n), 2) if rng.random() < 0.35]
    return n, pairs


def _substrings(text: str) -> Iterator[str]:
    yield from (text[i:j] for i in range(len(text) + 1) for j in range(i, len(text) + 1))


def _typos(text: str, word: str) -> int:
    return min(_distance(part, word) for part in set(_substrings(text)))


def _distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    if a[-1] == b[-1]:
        return _distance(a[:-1], b[:-1])
    return 1 + min(_distance(a[:-1], b), _distance(a, b[:-1]), _distance(a[:-1], b[:-1]))


def _best_trim(gains: list[int], size: int) -> int:
    results = []
    for start in range(len(gains) - size + 1):
        rest = gains[:start] + gains[start + size :]
        results += [sum(rest[i:j]) for i in range(len(rest)) for j in range(i + 1, len(rest) + 1)]
    return max(results)


def _with_size(rng: Random) -> tuple[list[int], int]:
    gains = numbers(rng, -9, 9, 9, 3)
    return gains, rng.randint(1, len(gains) - 1)


PROBLEMS = (
    Authored(
        id="peaceful-rows",
        difficulty="hard",
        split="held_out",
        statement="Guests 0 to n - 1 sit on one long bench. rivals holds pairs [a, b] of guests who must not sit "
        "directly next to each other. Return the number of orders in which all guests can sit. An order and its "
        "reverse count as two.",
        constraints="1 <= n <= 10\n0 <= len(rivals) <= 20\n0 <= a < b < n, pairs are distinct",
        solution="""
class Solution:
    def peacefulRows(self, n: int, rivals: List[List[int]]) -> int:
        hostile = {(a, b) for a, b in rivals} | {(b, a) for a, b in rivals}

        @cache
        def orders(seated: int, last: int) -> int:
            if seated == (1 << n) - 1:
                return 1
            free = (g for g in range(n) if not seated >> g & 1 and (last, g) not in hostile)
            return sum(orders(seated | 1 << g, g) for g in free)

        return orders(0, -1)
""",
        wrong=(
            """
class Solution:
    def peacefulRows(self, n: int, rivals: List[List[int]]) -> int:
        hostile = {(a, b) for a, b in rivals}
        count = 0
        for order in permutations(range(n)):
            count += all(pair not in hostile for pair in zip(order, order[1:]))
        return count
""",
        ),
        brute=_seatings,
        fixed=(
            (3, [[0, 1]]),
            (4, [[0, 1], [2, 3]]),
            (1, []),
            (2, [[0, 1]]),
            (5, []),
            (4, [[0, 1], [0, 2], [0, 3]]),
        ),
        drawn=_rivals,
    ),
    Authored(
        id="nearest-typo",
        difficulty="hard",
        split="train",
        statement="A search box should find word even with typing errors. The cost of turning one string into another "
        "is the smallest number of letters to insert, delete or replace. Return the smallest cost of turning some "
        "contiguous part of text, possibly the empty one, into word.",
        constraints="0 <= len(text) <= 100\n1 <= len(word) <= 20\nboth hold lower-case letters",
        solution="""
class Solution:
    def nearestTypo(self, text: str, word: str) -> int:
        costs = list(range(len(word) + 1))
        best = costs[-1]
        for letter in text:
            before, costs = costs, [0]
            for i, wanted in enumerate(word):
                costs.append(min(before[i] + (letter != wanted), before[i + 1] + 1, costs[i] + 1))
            best = min(best, costs[-1])
        return best
""",
        wrong=(
            """
class Solution:
    def nearestTypo(self, text: str, word: str) -> int:
        best = len(word)
        for start in range(len(text) - len(word) + 1):
            best = min(best, sum(a != b for a, b in zip(text[start:], word)))
        return best
""",
        ),
        brute=_typos,
        fixed=(
            ("the brwn fox", "brown"),
            ("abcdef", "xyz"),
            ("", "ab"),
            ("kayak", "kayak"),
            ("grandfather", "fether"),
            ("aab", "abab"),
            ("oooo", "xoxo"),
        ),
        drawn=lambda rng: (letters(rng, "abc", 7), letters(rng, "abc", 4, 2)),
    ),
    Authored(
        id="skip-block",
        difficulty="hard",
        split="held_out",
        statement="gains lists the daily result of a shop. Exactly size neighbouring days are struck from the list, and "
        "the remaining days move together. Then one run of one or more neighbouring days of the remaining list is "
        "picked. Return the largest possible sum of that run.",
        constraints="2 <= len(gains) <= 100\n1 <= size < len(gains)\n-50 <= gains[i] <= 50",
        solution="""
class Solution:
    def skipBlock(self, gains: List[int], size: int) -> int:
        n = len(gains)
        ending, starting = gains[:], gains[:]
        for i in range(1, n):
            ending[i] = max(gains[i], ending[i - 1] + gains[i])
        for i in range(n - 2, -1, -1):
            starting[i] = max(gains[i], starting[i + 1] + gains[i])
        left = list(accumulate(ending, max))
        right = list(accumulate(reversed(starting), max))[::-1]
        best = -inf
        for first in range(n - size + 1):
            after = first + size
            if first > 0:
                best = max(best, left[first - 1])
            if after < n:
                best = max(best, right[after])
            if first > 0 and after < n:
                best = max(best, ending[first - 1] + starting[after])
        return best
""",
        wrong=(
            """
class Solution:
    def skipBlock(self, gains: List[int], size: int) -> int:
        def best_run(days):
            return max(accumulate(days, lambda run, gain: max(run, 0) + gain), default=-inf)

        return max(
            max(best_run(gains[:first]), best_run(gains[first + size :]))
            for first in range(len(gains) - size + 1)
        )
""",
        ),
        brute=_best_trim,
        fixed=(
            ([4, -9, 5, 2], 1),
            ([-3, -8, -2], 2),
            ([6, 7], 1),
            ([1, 2, 3, 4, 5], 3),
            ([5, -1, -1, 5], 2),
            ([-1, -2, -3], 1),
            ([3, -4, 3, -4, 3], 1),
        ),
        drawn=lambda rng: _with_size(rng),
    ),
)
