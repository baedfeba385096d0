"""Built-in problems, easy, second part."""

from __future__ import annotations

from fractions import Fraction

from .authored import Authored, letters, numbers

PROBLEMS = (
    Authored(
        id="even-cut",
        difficulty="easy",
        split="train",
        statement="A rope of beads is cut once between two beads, so that both parts hold at least one bead. The "
        "weight of a part is the sum of its beads, which may be negative for floating beads. Return the smallest "
        "possible absolute difference between the weights of the two parts.",
        constraints="2 <= len(beads) <= 40\n-20 <= beads[i] <= 20",
        solution="""
class Solution:
    def evenCut(self, beads: List[int]) -> int:
        total = sum(beads)
        return min(abs(total - 2 * left) for left in accumulate(beads[:-1]))
""",
        wrong=(
            """
class Solution:
    def evenCut(self, beads: List[int]) -> int:
        total = sum(beads)
        return min(abs(total - 2 * left) for left in accumulate(beads, initial=0))
""",
        ),
        brute=lambda beads: min(abs(sum(beads[:i]) - sum(beads[i:])) for i in range(1, len(beads))),
        fixed=(([3, 1, 4, 2],), ([7, 2],), ([5, -5],), ([0, 0],), ([-4, -3, 9],), ([9, -9, 1, -1],), ([20, 20],)),
        drawn=lambda rng: (numbers(rng, -9, 12, 10, 2),),
    ),
    Authored(
        id="dart-score",
        difficulty="easy",
        split="held_out",
        statement="A dart game gives each throw its value in points. A throw that equals the throw just before it "
        "counts double. Values of 0 give nothing and are never doubled. Return the total score.",
        constraints="1 <= len(throws) <= 30\n0 <= throws[i] <= 20",
        solution="""
class Solution:
    def dartScore(self, throws: List[int]) -> int:
        score, before = 0, None
        for throw in throws:
            score += 2 * throw if throw == before else throw
            before = throw
        return score
""",
        wrong=(
            """
class Solution:
    def dartScore(self, throws: List[int]) -> int:
        score, seen = 0, set()
        for throw in throws:
            score += 2 * throw if throw in seen else throw
            seen.add(throw)
        return score
""",
        ),
        brute=lambda throws: sum(throws) + sum(throws[i] for i in range(1, len(throws)) if throws[i] == throws[i - 1]),
        fixed=(([5, 5, 3],), ([4, 1, 4],), ([0, 0],), ([20],), ([2, 2, 2],), ([7, 0, 7, 7],), ([1, 2, 2, 1, 1],)),
        drawn=lambda rng: (numbers(rng, 0, 4, 12),),
    ),
    Authored(
        id="common-ending",
        difficulty="easy",
        split="train",
        statement="A poet wants to know how well a list of words rhymes. Return the longest string with which every "
        "one of the words ends; it may be empty.",
        constraints="1 <= len(words) <= 10\n1 <= len(words[i]) <= 12\nwords hold lower-case letters",
        solution="""
class Solution:
    def commonEnding(self, words: List[str]) -> str:
        ending = words[0]
        for word in words[1:]:
            while not word.endswith(ending):
                ending = ending[1:]
        return ending
""",
        wrong=(
            """
class Solution:
    def commonEnding(self, words: List[str]) -> str:
        first, last = words[0], words[-1]
        size = 0
        while size < min(len(first), len(last)) and first[-1 - size] == last[-1 - size]:
            size += 1
        return first[len(first) - size:]
""",
        ),
        brute=lambda words: max(
            (
                words[0][i:]
                for i in range(len(words[0]) + 1)
                if all(w[-len(words[0][i:]) or 99 :] == words[0][i:] for w in words)
            ),
            key=len,
        ),
        fixed=(
            (["nation", "station", "ration"],),
            (["light", "sea", "night"],),
            (["solo"],),
            (["aa", "a", "aaa"],),
            (["top", "stop", "op"],),
            (["abc", "bc", "xbc", "c"],),
        ),
        drawn=lambda rng: (
            [letters(rng, "xy", 3, 0) + "yx" * rng.randint(0, 1) + "y" for _ in range(rng.randint(2, 4))],
        ),
    ),
    Authored(
        id="round-to-base",
        difficulty="easy",
        split="train",
        statement="A shop rounds every amount to the nearest multiple of base. An amount that lies exactly in the "
        "middle between two multiples goes up to the larger one. Return the rounded amounts in order.",
        constraints="1 <= len(amounts) <= 30\n0 <= amounts[i] <= 1000\n1 <= base <= 100",
        solution="""
class Solution:
    def roundToBase(self, amounts: List[int], base: int) -> List[int]:
        return [(2 * amount + base) // (2 * base) * base for amount in amounts]
""",
        wrong=(
            """
class Solution:
    def roundToBase(self, amounts: List[int], base: int) -> List[int]:
        return [round(amount / base) * base for amount in amounts]
""",
        ),
        brute=lambda amounts, base: [min(range(0, 1101, base), key=lambda m: (abs(m - a), -m)) for a in amounts],
        fixed=(
            ([12, 13, 25], 10),
            ([3, 4, 7], 5),
            ([0], 7),
            ([5, 15, 25, 35], 10),
            ([1, 2, 3], 1),
            ([2, 6, 10], 4),
            ([1000], 100),
        ),
        drawn=lambda rng: (numbers(rng, 0, 60, 7), rng.randint(2, 8)),
    ),
    Authored(
        id="taller-before",
        difficulty="easy",
        split="held_out",
        statement="Boxes stand in a row from left to right. For each box, count the boxes to its left that are "
        "strictly taller. Return the counts in order.",
        constraints="1 <= len(heights) <= 50\n1 <= heights[i] <= 50",
        solution="""
class Solution:
    def tallerBefore(self, heights: List[int]) -> List[int]:
        seen, counts = [], []
        for height in heights:
            counts.append(len(seen) - bisect_right(seen, height))
            insort(seen, height)
        return counts
""",
        wrong=(
            """
class Solution:
    def tallerBefore(self, heights: List[int]) -> List[int]:
        seen, counts = [], []
        for height in heights:
            counts.append(len(seen) - bisect_left(seen, height))
            insort(seen, height)
        return counts
""",
        ),
        brute=lambda heights: [sum(other > h for other in heights[:i]) for i, h in enumerate(heights)],
        fixed=(([5, 3, 4, 1],), ([2, 2, 2],), ([9],), ([1, 2, 3],), ([3, 2, 1],), ([4, 4, 1, 4, 1],)),
        drawn=lambda rng: (numbers(rng, 1, 9, 10),),
    ),
    Authored(
        id="trimmed-mean",
        difficulty="easy",
        split="train",
        statement="A jury drops one of its lowest and one of its highest scores and averages the rest. If the lowest "
        "score was given several times, only one of them is dropped; likewise for the highest. Return the average.",
        constraints="3 <= len(scores) <= 20\n0 <= scores[i] <= 40",
        solution="""
class Solution:
    def trimmedMean(self, scores: List[int]) -> float:
        return (sum(scores) - min(scores) - max(scores)) / (len(scores) - 2)
""",
        wrong=(
            """
class Solution:
    def trimmedMean(self, scores: List[int]) -> float:
        kept = [score for score in scores if min(scores) < score < max(scores)]
        return sum(kept) / len(kept) if kept else float(scores[0])
""",
        ),
        brute=lambda scores: float(Fraction(sum(sorted(scores)[1:-1]), len(scores) - 2)),
        fixed=(([7, 9, 8, 3],), ([5, 5, 5, 10],), ([1, 2, 3],), ([0, 0, 0],), ([4, 4, 9, 9],), ([40, 0, 0, 0, 1],)),
        drawn=lambda rng: (numbers(rng, 0, 10, 9, 3),),
    ),
)
