"""Built-in problems, medium, third part."""

from __future__ import annotations

from .authored import Authored, letters, numbers


def _way_home(moves: str) -> str:
    """Cancels neighbouring opposites in the sorted moves, one pair at a time."""
    left = list(moves)
    for pair in ("NS", "EW"):
        while all(side in left for side in pair):
            for side in pair:
                left.remove(side)
    return "".join(f"{side}{left.count(side)}" for side in "NSEW" if side in left)


def _gaps(pages: list[int]) -> list[str]:
    """Walks over every page number and closes a gap when a present page follows."""
    parts: list[str] = []
    gap: list[int] = []
    for page in range(1, max(pages) + 1):
        if page in pages:
            if gap:
                parts.append(str(gap[0]) if len(gap) == 1 else f"{gap[0]}-{gap[-1]}")
            gap = []
        else:
            gap.append(page)
    return parts


def _most_pairs(skills: list[int], gap: int) -> int:
    """Tries every pairing."""
    if len(skills) < 2:
        return 0
    first, rest = skills[0], skills[1:]
    best = _most_pairs(rest, gap)
    for i, other in enumerate(rest):
        if abs(first - other) <= gap:
            best = max(best, 1 + _most_pairs(rest[:i] + rest[i + 1 :], gap))
    return best


def _cut_off(n: int, cables: list[list[int]], broken: list[int]) -> int:
    """Spreads a mark along the whole cables until nothing changes."""
    reached = {0}
    for _ in range(n):
        for i, (a, b) in enumerate(cables):
            if i not in broken and (a in reached or b in reached):
                reached |= {a, b}
    return n - len(reached)


PROBLEMS = (
    Authored(
        id="way-home",
        difficulty="medium",
        split="train",
        statement="A robot walked the moves N, S, E and W, one field each. Opposite moves cancel. Write the shortest way "
        "from its start to where it stands: the part in N or S first, then the part in E or W, each as letter and "
        'number, as in "N2E1". A part of length 0 is left out. Return that text.',
        constraints="0 <= len(moves) <= 60\nmoves holds only the letters N, S, E, W",
        solution="""
class Solution:
    def wayHome(self, moves: str) -> str:
        north = moves.count("N") - moves.count("S")
        east = moves.count("E") - moves.count("W")
        parts = ((north, "N", "S"), (east, "E", "W"))
        return "".join((up if size > 0 else down) + str(abs(size)) for size, up, down in parts if size)
""",
        wrong=(
            """
class Solution:
    def wayHome(self, moves: str) -> str:
        north = moves.count("N") - moves.count("S")
        east = moves.count("E") - moves.count("W")
        parts = ((north, "N", "S"), (east, "E", "W"))
        return "".join((up if size > 0 else down) + str(abs(size)) for size, up, down in parts)
""",
        ),
        brute=_way_home,
        fixed=(("NNESN",), ("SWWE",), ("",), ("NS",), ("WWW",), ("NSEWNSEWE",), ("SSSSSSSSSSSS",)),
        drawn=lambda rng: (letters(rng, "NNSEW", 14),),
    ),
    Authored(
        id="lost-pages",
        difficulty="medium",
        split="train",
        statement="A book lost some pages. Given the page numbers that are left, without order and perhaps repeated, "
        'describe the missing ones from 1 up to the largest page left: a single page as "4", neighbouring pages as '
        '"6-9". Return these texts in increasing order.',
        constraints="1 <= len(pages) <= 40\n1 <= pages[i] <= 200",
        solution="""
class Solution:
    def lostPages(self, pages: List[int]) -> List[str]:
        parts, before = [], 0
        for page in sorted(set(pages)):
            first, last = before + 1, page - 1
            if first == last:
                parts.append(str(first))
            elif first < last:
                parts.append(f"{first}-{last}")
            before = page
        return parts
""",
        wrong=(
            """
class Solution:
    def lostPages(self, pages: List[int]) -> List[str]:
        pages = sorted(set(pages))
        parts = []
        for before, page in zip(pages, pages[1:]):
            if page - before == 2:
                parts.append(str(before + 1))
            elif page - before > 2:
                parts.append(f"{before + 1}-{page - 1}")
        return parts
""",
        ),
        brute=_gaps,
        fixed=(([2, 5, 3, 10],), ([1, 2, 3],), ([1],), ([2],), ([3, 3],), ([9, 1, 5],), ([200],)),
        drawn=lambda rng: (numbers(rng, 1, 22, 9),),
    ),
    Authored(
        id="rowing-pairs",
        difficulty="medium",
        split="held_out",
        statement="Two rowers fit in one boat if their strengths differ by at most gap. Every rower sits in one boat at "
        "most. Return the largest number of boats with two rowers.",
        constraints="0 <= len(strengths) <= 60\n1 <= strengths[i] <= 100\n0 <= gap <= 20",
        solution="""
class Solution:
    def rowingPairs(self, strengths: List[int], gap: int) -> int:
        ordered, boats, i = sorted(strengths), 0, 0
        while i + 1 < len(ordered):
            fits = ordered[i + 1] - ordered[i] <= gap
            boats += fits
            i += 2 if fits else 1
        return boats
""",
        wrong=(
            """
class Solution:
    def rowingPairs(self, strengths: List[int], gap: int) -> int:
        ordered = sorted(strengths)
        return sum(b - a <= gap for a, b in zip(ordered[::2], ordered[1::2]))
""",
        ),
        brute=_most_pairs,
        fixed=(
            ([10, 14, 11, 20], 2),
            ([1, 5, 6, 10], 1),
            ([], 3),
            ([7], 3),
            ([4, 4, 4, 4], 0),
            ([1, 4, 5, 8, 9], 1),
        ),
        drawn=lambda rng: (numbers(rng, 1, 20, 8), rng.randint(0, 4)),
    ),
    Authored(
        id="cut-off",
        difficulty="medium",
        split="train",
        statement="Computers 0 to n - 1 are joined by cables, cables[i] = [a, b], which carry data both ways. The cables "
        "whose indices are in broken carry nothing. Return how many computers cannot be reached from computer 0.",
        constraints="1 <= n <= 40\n0 <= len(cables) <= 60\n0 <= a, b < n\nbroken holds distinct indices of cables",
        solution="""
class Solution:
    def cutOff(self, n: int, cables: List[List[int]], broken: List[int]) -> int:
        near = defaultdict(list)
        for i, (a, b) in enumerate(cables):
            if i not in set(broken):
                near[a].append(b)
                near[b].append(a)
        seen, stack = {0}, [0]
        while stack:
            for other in near[stack.pop()]:
                if other not in seen:
                    seen.add(other)
                    stack.append(other)
        return n - len(seen)
""",
        wrong=(
            """
class Solution:
    def cutOff(self, n: int, cables: List[List[int]], broken: List[int]) -> int:
        near = defaultdict(list)
        for i, (a, b) in enumerate(cables):
            if i not in broken:
                near[a].append(b)
        seen, stack = {0}, [0]
        while stack:
            for other in near[stack.pop()]:
                if other not in seen:
                    seen.add(other)
                    stack.append(other)
        return n - len(seen)
""",
        ),
        brute=_cut_off,
        fixed=(
            (4, [[0, 1], [1, 2], [2, 3]], [1]),
            (3, [[1, 0], [2, 1]], []),
            (1, [], []),
            (5, [], []),
            (4, [[0, 1], [0, 1], [1, 3]], [0]),
            (3, [[0, 1], [1, 2], [2, 0]], [0, 1, 2]),
        ),
        drawn=lambda rng: (6, [[rng.randint(0, 5), rng.randint(0, 5)] for _ in range(7)], [rng.randint(0, 3), 5]),
    ),
)
