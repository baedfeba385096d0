"""Built-in problems, hard, first part."""

from __future__ import annotations

from itertools import combinations, pairwise, product

from .authored import Authored, numbers


def _most_joy(shows: list[list[int]]) -> int:
    """Tries every subset in which each show ends before the next one starts."""
    best = 0
    for size in range(1, len(shows) + 1):
        for chosen in combinations(sorted(shows), size):
            if all(a[1] < b[0] for a, b in pairwise(chosen)):
                best = max(best, sum(show[2] for show in chosen))
    return best


def _least_ride(stops: list[int]) -> int:
    """Tries every assignment of stops to the two couriers."""
    costs = []
    for who in product((0, 1), repeat=len(stops)):
        at, cost = [0, 0], 0
        for courier, stop in zip(who, stops, strict=True):
            cost, at[courier] = cost + abs(stop - at[courier]), stop
        costs.append(cost)
    return min(costs)


def _fewest_tiles(length: int, tiles: list[int], stock: int) -> int:
    """Tries every number of each tile."""
    counts = product(range(stock + 1), repeat=len(tiles))
    totals = [sum(c) for c in counts if sum(n * t for n, t in zip(c, tiles, strict=True)) == length]
    return min(totals, default=-1)


def _widest(n: int, roads: list[list[int]]) -> int:
    """The largest width such that the roads at least that wide still join the two ends."""
    for width in sorted({w for _, _, w in roads}, reverse=True):
        reached = {0}
        for _ in range(n):
            for a, b, w in roads:
                if w >= width and (a in reached or b in reached):
                    reached |= {a, b}
        if n - 1 in reached:
            return width
    return 0


PROBLEMS = (
    Authored(
        id="festival-joy",
        difficulty="hard",
        split="train",
        statement="A festival has shows [start, end, joy] on many stages. A visitor sees whole shows only, one at a "
        "time, and needs a walk in between: the next show must start strictly after the end of the one before. Return "
        "the largest total joy.",
        constraints="1 <= len(shows) <= 50\n0 <= start < end <= 100\n1 <= joy <= 50",
        solution="""
class Solution:
    def festivalJoy(self, shows: List[List[int]]) -> int:
        ordered = sorted(shows, key=lambda show: show[1])
        ends, best = [], [0]
        for start, end, joy in ordered:
            best.append(max(best[-1], best[bisect_left(ends, start)] + joy))
            ends.append(end)
        return best[-1]
""",
        wrong=(
            """
class Solution:
    def festivalJoy(self, shows: List[List[int]]) -> int:
        ordered = sorted(shows, key=lambda show: show[1])
        ends, best = [], [0]
        for start, end, joy in ordered:
            best.append(max(best[-1], best[bisect_right(ends, start)] + joy))
            ends.append(end)
        return best[-1]
""",
        ),
        brute=_most_joy,
        fixed=(
            ([[1, 3, 5], [4, 6, 6], [2, 5, 9]],),
            ([[0, 2, 4], [2, 4, 4]],),
            ([[5, 6, 7]],),
            ([[0, 1, 1], [2, 3, 1], [4, 5, 1]],),
            ([[0, 9, 10], [1, 2, 4], [3, 4, 4], [5, 6, 4]],),
            ([[1, 4, 3], [1, 4, 8]],),
        ),
        drawn=lambda rng: ([[s, s + rng.randint(1, 4), rng.randint(1, 9)] for s in numbers(rng, 0, 9, 6, 2)],),
    ),
    Authored(
        id="two-couriers",
        difficulty="hard",
        split="held_out",
        statement="Two couriers stand at position 0 of a long street. Orders come in one after the other at the "
        "positions stops[0], stops[1], ...; for each order one of the two walks from where he stands to that position. "
        "The other one waits. Return the smallest total distance walked.",
        constraints="1 <= len(stops) <= 40\n-50 <= stops[i] <= 50",
        solution="""
class Solution:
    def twoCouriers(self, stops: List[int]) -> int:
        # One courier stands at the latest stop; the key says where the other one is.
        costs, here = {0: 0}, 0
        for stop in stops:
            moved = defaultdict(lambda: inf)
            for other, cost in costs.items():
                moved[other] = min(moved[other], cost + abs(stop - here))
                moved[here] = min(moved[here], cost + abs(stop - other))
            costs, here = moved, stop
        return min(costs.values())
""",
        wrong=(
            """
class Solution:
    def twoCouriers(self, stops: List[int]) -> int:
        a = b = total = 0
        for stop in stops:
            if abs(stop - a) <= abs(stop - b):
                total, a = total + abs(stop - a), stop
            else:
                total, b = total + abs(stop - b), stop
        return total
""",
        ),
        brute=_least_ride,
        fixed=(
            ([5, -4, 6, -5],),
            ([3, 1, 4],),
            ([0],),
            ([-7],),
            ([10, 4, 10, 4, 10],),
            ([2, 5, 1, 6, 0, 7],),
            ([-9, -2, -4, 8, 9, -4],),
        ),
        drawn=lambda rng: (numbers(rng, -9, 9, 9, 5),),
    ),
    Authored(
        id="tile-strip",
        difficulty="hard",
        split="train",
        statement="A strip of the given length must be filled exactly with tiles laid end to end. There are tiles of "
        "the different lengths in tiles, and stock pieces of each. Return the smallest number of pieces that fills "
        "the strip, or -1 if it cannot be filled.",
        constraints="1 <= length <= 300\n1 <= len(tiles) <= 8\n1 <= tiles[i] <= 60\n1 <= stock <= 8",
        solution="""
class Solution:
    def tileStrip(self, length: int, tiles: List[int], stock: int) -> int:
        fewest = [0] + [inf] * length
        for tile in tiles:
            for _ in range(stock):
                for total in range(length, tile - 1, -1):
                    fewest[total] = min(fewest[total], fewest[total - tile] + 1)
        return -1 if fewest[length] == inf else fewest[length]
""",
        wrong=(
            """
class Solution:
    def tileStrip(self, length: int, tiles: List[int], stock: int) -> int:
        fewest = [0] + [inf] * length
        for tile in tiles:
            for total in range(tile, length + 1):
                fewest[total] = min(fewest[total], fewest[total - tile] + 1)
        return -1 if fewest[length] == inf else fewest[length]
""",
            """
class Solution:
    def tileStrip(self, length: int, tiles: List[int], stock: int) -> int:
        pieces = 0
        for tile in sorted(tiles, reverse=True):
            used = min(stock, length // tile)
            length, pieces = length - used * tile, pieces + used
        return -1 if length else pieces
""",
        ),
        brute=_fewest_tiles,
        fixed=(
            (11, [5, 2], 3),
            (12, [9, 4], 3),
            (7, [7], 1),
            (8, [2], 3),
            (1, [2, 3], 4),
            (6, [4, 3, 1], 2),
            (10, [5, 1], 1),
        ),
        drawn=lambda rng: (rng.randint(4, 24), sorted({rng.randint(1, 9) for _ in range(3)}), rng.randint(1, 3)),
    ),
    Authored(
        id="widest-way",
        difficulty="hard",
        split="train",
        statement="Towns 0 to n - 1 are joined by roads [a, b, width], open both ways. A lorry fits on a road if it is "
        "at most as wide as the road. Return the largest width of a lorry that can drive from town 0 to town n - 1, or "
        "0 if no roads lead there.",
        constraints="2 <= n <= 40\n0 <= len(roads) <= 80\n1 <= width <= 50",
        solution="""
class Solution:
    def widestWay(self, n: int, roads: List[List[int]]) -> int:
        leader = list(range(n))

        def find(town: int) -> int:
            while leader[town] != town:
                leader[town] = leader[leader[town]]
                town = leader[town]
            return town

        for a, b, width in sorted(roads, key=lambda road: -road[2]):
            leader[find(a)] = find(b)
            if find(0) == find(n - 1):
                return width
        return 0
""",
        wrong=(
            """
class Solution:
    def widestWay(self, n: int, roads: List[List[int]]) -> int:
        town, width, seen = 0, 10**9, set()
        while town != n - 1:
            seen.add(town)
            ways = [(w, a + b - town) for a, b, w in roads if town in (a, b) and a + b - town not in seen]
            if not ways:
                return 0
            step, town = max(ways)
            width = min(width, step)
        return width
""",
        ),
        brute=_widest,
        fixed=(
            (4, [[0, 1, 5], [1, 3, 2], [0, 2, 3], [2, 3, 4]]),
            (3, [[0, 1, 7]]),
            (2, []),
            (2, [[1, 0, 6]]),
            (4, [[0, 1, 9], [0, 2, 3], [2, 3, 3]]),
            (3, [[0, 2, 1], [0, 1, 4], [2, 1, 4]]),
        ),
        drawn=lambda rng: (
            5,
            [[a, (a + rng.randint(1, 4)) % 5, rng.randint(1, 12)] for a in numbers(rng, 0, 4, 8, 3)],
        ),
    ),
)
