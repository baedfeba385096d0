"""Built-in problems, medium, second part."""

from __future__ import annotations

from functools import cache
from random import Random

from .authored import Authored, numbers


def _turned(grid: list[list[int]]) -> list[list[int]]:
    """Every outer cell takes the value of its neighbour against the clock."""
    bottom, right = len(grid) - 1, len(grid[0]) - 1

    def source(r: int, c: int) -> tuple[int, int]:
        if r == 0 and c > 0:
            return r, c - 1
        if c == right and r > 0:
            return r - 1, c
        if r == bottom and c < right:
            return r, c + 1
        return (r + 1, c) if c == 0 else (r, c)

    return [[grid[source(r, c)[0]][source(r, c)[1]] for c in range(right + 1)] for r in range(bottom + 1)]


def _refill(prices: list[int], tank: int) -> int:
    """Cheapest plan over every amount that may be bought each day."""

    @cache
    def cost(day: int, fuel: int) -> int:
        if day == len(prices):
            return 0
        return min(
            bought * prices[day] + cost(day + 1, fuel + bought - 1)
            for bought in range(tank - fuel + 1)
            if fuel + bought >= 1
        )

    return cost(0, 0)


def _table(rng: Random) -> list[list[int]]:
    rows, columns = rng.randint(2, 4), rng.randint(2, 4)
    return [[rng.randint(0, 9) for _ in range(columns)] for _ in range(rows)]


PROBLEMS = (
    Authored(
        id="steady-stretches",
        difficulty="medium",
        split="held_out",
        statement="A stretch is a run of one or more neighbouring readings. It is steady if its largest and its "
        "smallest reading differ by at most spread. Return the number of steady stretches.",
        constraints="1 <= len(readings) <= 200\n0 <= readings[i], spread <= 50",
        solution="""
class Solution:
    def steadyStretches(self, readings: List[int], spread: int) -> int:
        window, start, count = [], 0, 0
        for end, reading in enumerate(readings):
            insort(window, reading)
            while window[-1] - window[0] > spread:
                window.pop(bisect_left(window, readings[start]))
                start += 1
            count += end - start + 1
        return count
""",
        wrong=(
            """
class Solution:
    def steadyStretches(self, readings: List[int], spread: int) -> int:
        count = run = 0
        for i, reading in enumerate(readings):
            near = i > 0 and abs(reading - readings[i - 1]) <= spread
            run = run + 1 if near else 1
            count += run
        return count
""",
        ),
        brute=lambda readings, spread: sum(
            max(readings[i:j]) - min(readings[i:j]) <= spread
            for i in range(len(readings))
            for j in range(i + 1, len(readings) + 1)
        ),
        fixed=(
            ([4, 5, 7], 2),
            ([1, 2, 3], 1),
            ([9], 0),
            ([3, 3, 3, 3], 0),
            ([1, 3, 5, 7], 2),
            ([10, 0, 10, 0], 9),
        ),
        drawn=lambda rng: (numbers(rng, 0, 9, 12), rng.randint(0, 4)),
    ),
    Authored(
        id="turn-rim",
        difficulty="medium",
        split="train",
        statement="A tray of numbers has at least two rows and two columns. Move every number on its rim one place "
        "clockwise along the rim; inner numbers stay. Return the new tray.",
        constraints="2 <= rows, columns <= 8\n0 <= grid[i][j] <= 99",
        solution="""
class Solution:
    def turnRim(self, grid: List[List[int]]) -> List[List[int]]:
        bottom, right = len(grid) - 1, len(grid[0]) - 1
        rim = [(0, c) for c in range(right)] + [(r, right) for r in range(bottom)]
        rim += [(bottom, c) for c in range(right, 0, -1)] + [(r, 0) for r in range(bottom, 0, -1)]
        turned = [row[:] for row in grid]
        for (r, c), (to_r, to_c) in zip(rim, rim[1:] + rim[:1]):
            turned[to_r][to_c] = grid[r][c]
        return turned
""",
        wrong=(
            """
class Solution:
    def turnRim(self, grid: List[List[int]]) -> List[List[int]]:
        return [list(row) for row in zip(*grid[::-1])]
""",
        ),
        brute=_turned,
        fixed=(
            ([[1, 2], [3, 4]],),
            ([[1, 2, 3], [4, 5, 6], [7, 8, 9]],),
            ([[1, 2, 3], [4, 5, 6]],),
            ([[1, 2], [3, 4], [5, 6]],),
            ([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]],),
        ),
        drawn=lambda rng: (_table(rng),),
    ),
    Authored(
        id="ferry-fuel",
        difficulty="medium",
        split="held_out",
        statement="A ferry burns one barrel of fuel a day and its tank holds tank barrels. It starts empty. Each "
        "morning it may buy barrels at that day's price, up to a full tank. Return the smallest total cost of sailing "
        "on every day.",
        constraints="1 <= len(prices) <= 60\n1 <= prices[i] <= 90\n1 <= tank <= 10",
        solution="""
class Solution:
    def ferryFuel(self, prices: List[int], tank: int) -> int:
        return sum(min(prices[max(0, day - tank + 1) : day + 1]) for day in range(len(prices)))
""",
        wrong=(
            """
class Solution:
    def ferryFuel(self, prices: List[int], tank: int) -> int:
        return sum(min(prices[max(0, day - tank) : day + 1]) for day in range(len(prices)))
""",
        ),
        brute=_refill,
        fixed=(
            ([3, 5, 4, 6], 2),
            ([7, 8, 9], 1),
            ([4], 3),
            ([1, 9, 9, 9], 3),
            ([9, 8, 7, 6], 4),
            ([2, 6, 3, 7, 1, 5], 5),
        ),
        drawn=lambda rng: (numbers(rng, 1, 20, 8), rng.randint(1, 4)),
    ),
)
