"""Built-in problems, medium, first part."""

from __future__ import annotations

from random import Random

from .authored import Authored, letters, numbers


def _rounds(parcels: list[int], capacity: int) -> int:
    """Fewest rounds, over every way to cut the list."""
    if not parcels:
        return 0
    cuts = [size for size in (1, 2, 3) if size <= len(parcels) and sum(parcels[:size]) <= capacity]
    return 1 + min(_rounds(parcels[size:], capacity) for size in cuts)


def _unfold(text: str) -> str:
    """Rewrites one innermost pair of brackets at a time."""
    while ")" in text:
        close = text.index(")")
        start = text.rindex("(", 0, close)
        inner = text[start + 1 : close]
        text = text[:start] + inner + inner[::-1] + text[close + 1 :]
    return text


def _bracketed(rng: Random, depth: int = 2) -> str:
    parts = []
    for _ in range(rng.randint(1, 3)):
        parts.append(f"({_bracketed(rng, depth - 1)})" if depth and rng.random() < 0.5 else letters(rng, "abcd", 2))
    return "".join(parts)


def _steps(grid: list[str]) -> int:
    """Shortest walk by relaxing every cell until nothing changes."""
    far = 10**6
    best = {(r, c): far for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == "."}
    if (0, 0) in best:
        best[0, 0] = 0
    for _ in range(len(best)):
        for r, c in best:
            best[r, c] = min(best[r, c], *(best.get(near, far) + 1 for near in ((r - 1, c), (r, c - 1), (r, c + 1))))
    found = best.get((len(grid) - 1, len(grid[0]) - 1), far)
    return found if found < far else -1


def _map(rng: Random) -> list[str]:
    rows, columns = rng.randint(2, 4), rng.randint(2, 5)
    grid = ["".join("#" if rng.random() < 0.3 else "." for _ in range(columns)) for _ in range(rows)]
    return ["." + grid[0][1:], *grid[1:]]


PROBLEMS = (
    Authored(
        id="parcel-rounds",
        difficulty="medium",
        split="train",
        statement="A courier delivers parcels in the given order. On one round the bicycle carries the next one, two "
        "or three parcels, as long as their total weight is at most capacity. No parcel is heavier than capacity. "
        "Return the smallest number of rounds that delivers everything.",
        constraints="1 <= len(parcels) <= 40\n1 <= parcels[i] <= capacity <= 30",
        solution="""
class Solution:
    def parcelRounds(self, parcels: List[int], capacity: int) -> int:
        rounds, load, aboard = 1, 0, 0
        for weight in parcels:
            if aboard == 3 or load + weight > capacity:
                rounds, load, aboard = rounds + 1, 0, 0
            load, aboard = load + weight, aboard + 1
        return rounds
""",
        wrong=(
            """
class Solution:
    def parcelRounds(self, parcels: List[int], capacity: int) -> int:
        rounds, load = 1, 0
        for weight in parcels:
            if load + weight > capacity:
                rounds, load = rounds + 1, 0
            load += weight
        return rounds
""",
        ),
        brute=_rounds,
        fixed=(
            ([2, 3, 4, 1], 6),
            ([1, 1, 1, 1], 9),
            ([5], 5),
            ([5, 5, 5], 5),
            ([1, 1, 1, 1, 1, 1, 1], 3),
            ([4, 2, 2, 4], 8),
        ),
        drawn=lambda rng: (numbers(rng, 1, 8, 10), rng.randint(8, 14)),
    ),
    Authored(
        id="unfold-text",
        difficulty="medium",
        split="train",
        statement="A folded text holds letters and round brackets. The content of a pair of brackets, once it is "
        'unfolded itself, stands for that content followed by its own reverse: "a(bc)" means "abccb". Brackets are '
        "balanced and may be nested. Return the unfolded text.",
        constraints="1 <= len(text) <= 30\nbrackets are nested at most 3 deep",
        solution="""
class Solution:
    def unfold(self, text: str) -> str:
        open_parts = [""]
        for letter in text:
            if letter == "(":
                open_parts.append("")
            elif letter == ")":
                inner = open_parts.pop()
                open_parts[-1] += inner + inner[::-1]
            else:
                open_parts[-1] += letter
        return open_parts[0]
""",
        wrong=(
            """
class Solution:
    def unfold(self, text: str) -> str:
        open_parts = [""]
        for letter in text:
            if letter == "(":
                open_parts.append("")
            elif letter == ")":
                inner = open_parts.pop()
                open_parts[-1] += inner + inner
            else:
                open_parts[-1] += letter
        return open_parts[0]
""",
        ),
        brute=_unfold,
        fixed=(("a(bc)",), ("((ab)c)d",), ("x",), ("(x)",), ("(ab)(cd)",), ("a(b(cd))",), ("(((ab)))",)),
        drawn=lambda rng: (_bracketed(rng),),
    ),
    Authored(
        id="double-cover",
        difficulty="medium",
        split="held_out",
        statement="Guards work in shifts [start, end): from hour start up to, but not including, hour end. Return the "
        "number of hours in which at least two guards are on duty.",
        constraints="1 <= len(shifts) <= 20\n0 <= start < end <= 100",
        solution="""
class Solution:
    def doubleCover(self, shifts: List[List[int]]) -> int:
        events = sorted([(start, 1) for start, _ in shifts] + [(end, -1) for _, end in shifts])
        hours = on_duty = before = 0
        for time, change in events:
            if on_duty >= 2:
                hours += time - before
            on_duty, before = on_duty + change, time
        return hours
""",
        wrong=(
            """
class Solution:
    def doubleCover(self, shifts: List[List[int]]) -> int:
        hours = 0
        for (a, b), (c, d) in combinations(shifts, 2):
            hours += max(0, min(b, d) - max(a, c))
        return hours
""",
        ),
        brute=lambda shifts: sum(sum(s <= hour < e for s, e in shifts) >= 2 for hour in range(101)),
        fixed=(
            ([[1, 5], [3, 8], [4, 6]],),
            ([[0, 2], [2, 4]],),
            ([[7, 9]],),
            ([[1, 9], [1, 9], [1, 9]],),
            ([[0, 100], [10, 20], [30, 31]],),
            ([[0, 3], [1, 2], [1, 2]],),
        ),
        drawn=lambda rng: ([[s, s + rng.randint(1, 9)] for s in numbers(rng, 0, 20, 6, 2)],),
    ),
    Authored(
        id="downhill-walk",
        difficulty="medium",
        split="train",
        statement="A hiker starts in the top left cell of a map and wants to reach the bottom right cell. A step goes "
        'one cell right, left or down, never up. Cells "." are free and cells "#" are blocked. Return the smallest '
        "number of steps, or -1 if there is no way or an end is blocked.",
        constraints="1 <= rows, columns <= 12",
        solution="""
class Solution:
    def downhillWalk(self, grid: List[str]) -> int:
        rows, columns = len(grid), len(grid[0])
        if grid[0][0] == "#":
            return -1
        queue, steps = deque([(0, 0)]), {(0, 0): 0}
        while queue:
            r, c = queue.popleft()
            if (r, c) == (rows - 1, columns - 1):
                return steps[r, c]
            for near in ((r + 1, c), (r, c - 1), (r, c + 1)):
                inside = near[0] < rows and 0 <= near[1] < columns
                if inside and grid[near[0]][near[1]] == "." and near not in steps:
                    steps[near] = steps[r, c] + 1
                    queue.append(near)
        return -1
""",
        wrong=(
            """
class Solution:
    def downhillWalk(self, grid: List[str]) -> int:
        rows, columns = len(grid), len(grid[0])
        free = {(0, 0)} if grid[0][0] == "." else set()
        for r in range(rows):
            for c in range(columns):
                if grid[r][c] == "." and ((r - 1, c) in free or (r, c - 1) in free):
                    free.add((r, c))
        return rows + columns - 2 if (rows - 1, columns - 1) in free else -1
""",
        ),
        brute=_steps,
        fixed=(
            ([".#", ".."],),
            (["...#", "##..", "....", ".###", "...."],),
            (["."],),
            (["#"],),
            (["..", "##"],),
            (["...", ".#.", "..."],),
            (["..#", "#..", "..#", ".#.", "..."],),
        ),
        drawn=lambda rng: (_map(rng),),
    ),
)
