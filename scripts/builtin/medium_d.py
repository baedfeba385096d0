"""Built-in problems, medium, fourth part."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from random import Random

from .authored import Authored, letters, numbers


def _best_flip(n: int) -> int:
    digits = str(n)
    cuts = combinations(range(len(digits) + 1), 2)
    return max(int(digits[:i] + digits[i:j][::-1] + digits[j:]) for i, j in cuts)


def _runoff(ballots: list[list[str]]) -> str:
    """Recounts from scratch over the set of names still in the race."""
    race = {name for ballot in ballots for name in ballot}
    while True:
        tops = Counter(next(name for name in ballot if name in race) for ballot in ballots)
        leader = max(race, key=lambda name: tops[name])
        if 2 * tops[leader] > len(ballots) or len(race) == 1:
            return leader
        fewest = min(tops[name] for name in race)
        race.remove(max(name for name in race if tops[name] == fewest))


def _ballots(rng: Random) -> list[list[str]]:
    ballots = []
    for _ in range(rng.randint(3, 7)):
        names, ballot = list("abcd"), []
        while names:
            ballot.append(names.pop(rng.randint(0, len(names) - 1)))
        ballots.append(ballot)
    return ballots


def _trips(floors: list[int], capacity: int) -> int:
    """Tries every group that could ride with the first person."""
    if not floors:
        return 0
    others = range(1, len(floors))
    best = 10**9
    for size in range(min(capacity, len(floors))):
        for group in combinations(others, size):
            rest = [floors[i] for i in others if i not in group]
            best = min(best, 2 * max(floors[i] for i in (0, *group)) + _trips(rest, capacity))
    return best


def _presses(code: str) -> int:
    """Breadth-first search over the keys for each digit."""
    place = {
        key: (r, c) for r, row in enumerate(("123", "456", "789", " 0 ")) for c, key in enumerate(row) if key != " "
    }
    total, here = 0, "5"
    for key in code:
        ring, steps = {here}, 0
        while key not in ring:
            ring |= {
                k for k, (r, c) in place.items() if any(abs(r - place[h][0]) + abs(c - place[h][1]) == 1 for h in ring)
            }
            steps += 1
        total, here = total + steps, key
    return total


PROBLEMS = (
    Authored(
        id="one-flip",
        difficulty="medium",
        split="train",
        statement="Choose one run of neighbouring digits of n (it may be a single digit) and reverse the order of its "
        "digits. Return the largest number that can be made in this way.",
        constraints="1 <= n <= 10**9",
        solution="""
class Solution:
    def oneFlip(self, n: int) -> int:
        digits = str(n)
        for i in range(len(digits)):
            top = max(digits[i:])
            if top > digits[i]:
                ends = [j for j in range(i, len(digits)) if digits[j] == top]
                return max(int(digits[:i] + digits[i : j + 1][::-1] + digits[j + 1 :]) for j in ends)
        return n
""",
        wrong=(
            """
class Solution:
    def oneFlip(self, n: int) -> int:
        digits = list(str(n))
        for i in range(len(digits)):
            top = max(digits[i:])
            if top > digits[i]:
                j = len(digits) - 1 - digits[::-1].index(top)
                digits[i], digits[j] = digits[j], digits[i]
                break
        return int("".join(digits))
""",
        ),
        brute=_best_flip,
        fixed=((1382,), (9921,), (5,), (10,), (1979,), (987654321,), (1000000000,), (123,), (80997,)),
        drawn=lambda rng: (rng.randint(10, 99999),),
    ),
    Authored(
        id="village-vote",
        difficulty="medium",
        split="train",
        statement="Each ballot lists all candidates, best first. In a round, every ballot counts for its best candidate "
        "still in the race. If somebody has more than half of the ballots, or is the only one left, that candidate "
        "wins. Otherwise the one with the fewest votes leaves the race; among equals, the alphabetically last one. "
        "Return the winner's name.",
        constraints="1 <= len(ballots) <= 30\n1 to 6 candidates with different names",
        solution="""
class Solution:
    def villageVote(self, ballots: List[List[str]]) -> str:
        race = sorted(ballots[0])
        while True:
            votes = Counter(next(name for name in ballot if name in race) for ballot in ballots)
            best = max(race, key=lambda name: votes[name])
            if votes[best] * 2 > len(ballots) or len(race) == 1:
                return best
            race.remove(min(reversed(race), key=lambda name: votes[name]))
""",
        wrong=(
            """
class Solution:
    def villageVote(self, ballots: List[List[str]]) -> str:
        votes = Counter(ballot[0] for ballot in ballots)
        return max(sorted(votes), key=lambda name: votes[name])
""",
        ),
        brute=_runoff,
        fixed=(
            ([["a", "b"], ["b", "a"], ["a", "b"]],),
            (
                [
                    ["ann", "cy", "bo"],
                    ["ann", "bo", "cy"],
                    ["bo", "cy", "ann"],
                    ["cy", "bo", "ann"],
                    ["bo", "cy", "ann"],
                ],
            ),
            ([["x"]],),
            ([["x", "y"], ["y", "x"]],),
            ([["a", "b", "c"], ["b", "c", "a"], ["c", "b", "a"], ["a", "c", "b"]],),
            ([["c", "b", "a"], ["b", "c", "a"], ["b", "a", "c"], ["c", "a", "b"], ["a", "c", "b"]],),
        ),
        drawn=lambda rng: (_ballots(rng),),
    ),
    Authored(
        id="lift-trips",
        difficulty="medium",
        split="held_out",
        statement="People wait at floor 0; floors[i] is where person i wants to go. The lift takes at most capacity "
        "people per trip, in any grouping, and returns to floor 0 after each trip. A trip costs twice its highest "
        "floor. Return the smallest total cost.",
        constraints="1 <= len(floors) <= 60\n1 <= floors[i] <= 50\n1 <= capacity <= 10",
        solution="""
class Solution:
    def liftTrips(self, floors: List[int], capacity: int) -> int:
        return 2 * sum(sorted(floors, reverse=True)[::capacity])
""",
        wrong=(
            """
class Solution:
    def liftTrips(self, floors: List[int], capacity: int) -> int:
        return 2 * sum(max(floors[i : i + capacity]) for i in range(0, len(floors), capacity))
""",
            """
class Solution:
    def liftTrips(self, floors: List[int], capacity: int) -> int:
        return 2 * sum(sorted(floors)[capacity - 1 :: capacity])
""",
        ),
        brute=_trips,
        fixed=(
            ([3, 9, 4, 8], 2),
            ([5, 1, 6], 2),
            ([7], 4),
            ([2, 2, 2], 1),
            ([1, 10, 1, 10, 1], 2),
            ([4, 3, 2, 1], 10),
        ),
        drawn=lambda rng: (numbers(rng, 1, 9, 6), rng.randint(1, 3)),
    ),
    Authored(
        id="keypad-walk",
        difficulty="medium",
        split="train",
        statement="A keypad has the rows 123, 456, 789 and a single 0 below the 8. A finger rests on the 5 and types "
        "code digit by digit. From one key it moves to a key directly above, below, left or right; each such move "
        "costs one step, pressing costs nothing. Return the smallest total number of steps.",
        constraints="1 <= len(code) <= 30\ncode holds digits",
        solution="""
class Solution:
    def keypadWalk(self, code: str) -> int:
        def place(key: str) -> Tuple[int, int]:
            return (3, 1) if key == "0" else divmod(int(key) - 1, 3)

        walk = ["5", *code]
        pairs = ((place(a), place(b)) for a, b in zip(walk, walk[1:]))
        return sum(abs(r - s) + abs(c - d) for (r, c), (s, d) in pairs)
""",
        wrong=(
            """
class Solution:
    def keypadWalk(self, code: str) -> int:
        def place(key: str) -> Tuple[int, int]:
            return (3, 1) if key == "0" else divmod(int(key) - 1, 3)

        pairs = ((place(a), place(b)) for a, b in zip(code, code[1:]))
        return sum(abs(r - s) + abs(c - d) for (r, c), (s, d) in pairs)
""",
        ),
        brute=_presses,
        fixed=(("19",), ("5580",), ("5",), ("0",), ("7070",), ("1234567890",), ("3333",)),
        drawn=lambda rng: (letters(rng, "0123456789", 8),),
    ),
)
