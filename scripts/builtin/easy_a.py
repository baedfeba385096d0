"""Built-in problems, easy, first part."""

from __future__ import annotations

from collections import Counter

from .authored import Authored, letters, numbers


def _start(text: str, i: int) -> int:
    return text.rfind(" ", 0, i) + 1


def _end(text: str, i: int) -> int:
    return (text + " ").find(" ", i) - 1


def _ride(capacity: int, stops: list[list[int]]) -> int:
    seats: Counter[str] = Counter()
    for off, on in stops:
        for _ in range(off):
            seats["taken"] -= seats["taken"] > 0
        for _ in range(on):
            seats["taken" if seats["taken"] < capacity else "left"] += 1
    return seats["left"]


def _times() -> list[str]:
    return [f"{h:02d}:{m:02d}" for h in range(1, 13) for m in range(60)]


def _angle(time: str) -> int:
    """Position of the hour hand in half degrees, which fixes the time."""
    return int(time[:2]) % 12 * 60 + int(time[3:])


PROBLEMS = (
    Authored(
        id="lone-socks",
        difficulty="easy",
        split="train",
        statement="After the laundry a drawer holds single socks, given as a list of colour numbers. Two socks of the "
        "same colour make a pair, and each sock is in one pair at most. Pair up as many socks as possible and return "
        "how many socks stay alone.",
        constraints="0 <= len(colors) <= 40\n1 <= colors[i] <= 9",
        solution="""
class Solution:
    def loneSocks(self, colors: List[int]) -> int:
        return sum(count % 2 for count in Counter(colors).values())
""",
        wrong=(
            """
class Solution:
    def loneSocks(self, colors: List[int]) -> int:
        return sum(1 for count in Counter(colors).values() if count == 1)
""",
        ),
        brute=lambda colors: len([c for i, c in enumerate(colors) if colors[i:].count(c) % 2 and c not in colors[:i]]),
        fixed=(([3, 1, 3, 2, 1, 3],), ([4, 4, 7, 7],), ([],), ([5],), ([2, 2, 2],), ([1, 2, 3, 4, 5, 6, 7, 8, 9],)),
        drawn=lambda rng: (numbers(rng, 1, 9, 24),),
    ),
    Authored(
        id="quiet-stretch",
        difficulty="easy",
        split="train",
        statement="A microphone stores one loudness value per second. A second is quiet if its value is at most "
        "limit. Return the length in seconds of the longest unbroken stretch of quiet seconds.",
        constraints="1 <= len(noise) <= 60\n0 <= noise[i], limit <= 20",
        solution="""
class Solution:
    def quietStretch(self, noise: List[int], limit: int) -> int:
        best = run = 0
        for value in noise:
            run = run + 1 if value <= limit else 0
            best = max(best, run)
        return best
""",
        wrong=(
            """
class Solution:
    def quietStretch(self, noise: List[int], limit: int) -> int:
        best = run = 0
        for value in noise:
            run = run + 1 if value < limit else 0
            best = max(best, run)
        return best
""",
        ),
        brute=lambda noise, limit: max(
            j - i
            for i in range(len(noise) + 1)
            for j in range(i, len(noise) + 1)
            if all(v <= limit for v in noise[i:j])
        ),
        fixed=(
            ([4, 2, 9, 1, 3, 2, 8], 3),
            ([5, 5, 5], 4),
            ([5, 5, 5], 5),
            ([0], 0),
            ([7, 1, 7, 1, 1], 6),
            ([1, 2, 3, 4, 5, 6], 20),
        ),
        drawn=lambda rng: (numbers(rng, 0, 12, 24), rng.randint(2, 10)),
    ),
    Authored(
        id="edge-swap",
        difficulty="easy",
        split="held_out",
        statement="A sign painter swaps the first and the last letter of every word. Words are separated by single "
        "blanks, and a word of one letter stays as it is. Return the painted text.",
        constraints="1 <= len(text) <= 60\ntext holds lower-case letters and single blanks between words",
        solution="""
class Solution:
    def swapEdges(self, text: str) -> str:
        def painted(word: str) -> str:
            return word if len(word) < 2 else word[-1] + word[1:-1] + word[0]

        return " ".join(painted(word) for word in text.split(" "))
""",
        wrong=(
            """
class Solution:
    def swapEdges(self, text: str) -> str:
        return " ".join(word[-1] + word[1:-1] + word[0] for word in text.split(" "))
""",
        ),
        brute=lambda text: "".join(
            text[_start(text, i) + _end(text, i) - i] if c != " " and i in (_start(text, i), _end(text, i)) else c
            for i, c in enumerate(text)
        ),
        fixed=(("paint the sign",), ("i see a cat",), ("a",), ("ab",), ("noon level",), ("x yz x",)),
        drawn=lambda rng: (" ".join(letters(rng, "abcdefg", 6) for _ in range(rng.randint(1, 5))),),
    ),
    Authored(
        id="digit-stairs",
        difficulty="easy",
        split="train",
        statement="A number climbs if each of its decimal digits, read from left to right, is larger than the digit "
        "before it. A number of one digit climbs. Return whether n climbs.",
        constraints="0 <= n <= 10**9",
        solution="""
class Solution:
    def digitStairs(self, n: int) -> bool:
        digits = str(n)
        return all(a < b for a, b in zip(digits, digits[1:]))
""",
        wrong=(
            """
class Solution:
    def digitStairs(self, n: int) -> bool:
        digits = str(n)
        return all(a <= b for a, b in zip(digits, digits[1:]))
""",
        ),
        brute=lambda n: sorted(set(str(n))) == list(str(n)),
        fixed=((1479,), (1447,), (0,), (9,), (10,), (123456789,), (987,), (112,), (35,), (1000000000,)),
        drawn=lambda rng: (
            int("".join(sorted(letters(rng, "123456789", 4)))) if rng.random() < 0.7 else rng.randint(0, 999),
        ),
    ),
    Authored(
        id="left-at-stop",
        difficulty="easy",
        split="held_out",
        statement="A bus starts empty and has capacity seats. At each stop, in order, stops[i] = [off, on]: first off "
        "passengers get off, or all of them if fewer are aboard; then on people want to get on. Those who find no seat "
        "stay behind. Return how many people are left behind over the whole ride.",
        constraints="1 <= capacity <= 20\n1 <= len(stops) <= 20\n0 <= off, on <= 15",
        solution="""
class Solution:
    def leftBehind(self, capacity: int, stops: List[List[int]]) -> int:
        aboard = left = 0
        for off, on in stops:
            aboard -= min(off, aboard)
            boarding = min(on, capacity - aboard)
            aboard += boarding
            left += on - boarding
        return left
""",
        wrong=(
            """
class Solution:
    def leftBehind(self, capacity: int, stops: List[List[int]]) -> int:
        aboard = left = 0
        for off, on in stops:
            boarding = min(on, capacity - aboard)
            left += on - boarding
            aboard += boarding - min(off, aboard)
        return left
""",
        ),
        brute=lambda capacity, stops: _ride(capacity, stops),
        fixed=(
            (5, [[0, 4], [1, 3], [5, 2]]),
            (3, [[0, 5], [0, 1]]),
            (1, [[0, 1]]),
            (4, [[0, 4], [2, 2], [4, 9]]),
            (10, [[0, 3], [1, 3], [2, 2]]),
            (2, [[0, 0], [9, 3], [1, 1]]),
        ),
        drawn=lambda rng: (
            rng.randint(2, 9),
            [[0, rng.randint(0, 9)], *([rng.randint(0, 4), rng.randint(0, 7)] for _ in range(rng.randint(1, 6)))],
        ),
    ),
    Authored(
        id="mirror-clock",
        difficulty="easy",
        split="train",
        statement="A clock with hands and twelve hours, but without digits, hangs opposite a mirror. Given the time "
        'that it shows as "HH:MM", with HH from 01 to 12, return the time that one reads in the mirror, in the same '
        "form. The hour hand moves smoothly between the hours.",
        constraints="time is a valid time from 01:00 to 12:59",
        solution="""
class Solution:
    def mirrorClock(self, time: str) -> str:
        hours, minutes = map(int, time.split(":"))
        mirrored = -(hours * 60 + minutes) % 720
        return f"{mirrored // 60 or 12:02d}:{mirrored % 60:02d}"
""",
        wrong=(
            """
class Solution:
    def mirrorClock(self, time: str) -> str:
        hours, minutes = map(int, time.split(":"))
        return f"{(12 - hours) or 12:02d}:{(60 - minutes) % 60:02d}"
""",
            """
class Solution:
    def mirrorClock(self, time: str) -> str:
        hours, minutes = map(int, time.split(":"))
        mirrored = -(hours * 60 + minutes) % 720
        return f"{mirrored // 60:02d}:{mirrored % 60:02d}"
""",
        ),
        brute=lambda time: next(t for t in _times() if (_angle(t) + _angle(time)) % 720 == 0),
        fixed=(("03:00",), ("12:45",), ("12:00",), ("06:00",), ("11:59",), ("01:01",), ("11:30",), ("05:25",)),
        drawn=lambda rng: (f"{rng.randint(1, 12):02d}:{rng.randint(0, 59):02d}",),
    ),
    Authored(
        id="short-runs",
        difficulty="easy",
        split="train",
        statement="A keyboard has sticky keys, so some letters were typed too often. Shorten every run of equal "
        "letters that is longer than limit to exactly limit letters and return the text.",
        constraints="0 <= len(text) <= 60\n1 <= limit <= 4\ntext holds lower-case letters",
        solution="""
class Solution:
    def shortRuns(self, text: str, limit: int) -> str:
        return "".join("".join(islice(run, limit)) for _, run in groupby(text))
""",
        wrong=(
            """
class Solution:
    def shortRuns(self, text: str, limit: int) -> str:
        kept = []
        for letter in text:
            if kept.count(letter) < limit:
                kept.append(letter)
        return "".join(kept)
""",
        ),
        brute=lambda text, limit: "".join(
            c for i, c in enumerate(text) if i < limit or text[i - limit : i] != c * limit
        ),
        fixed=(("heeello", 2), ("aaabaa", 1), ("", 3), ("zzzz", 4), ("zzzzz", 4), ("abab", 1), ("aabbaabb", 2)),
        drawn=lambda rng: (letters(rng, "aab", 16), rng.randint(1, 3)),
    ),
)
