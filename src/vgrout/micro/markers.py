"""The corpus's own markers, so that a base model copies a marker from the hint and never knows one by heart.

They are made from words and syllables that no train or eval family uses; a gate asserts that the three are disjoint.
"""

from __future__ import annotations

import random

_WORDS = [
    "ready",
    "steady",
    "sound",
    "proper",
    "green",
    "clear",
    "settled",
    "finished",
    "stable",
    "fair",
    "plain",
    "prime",
    "agreed",
    "granted",
    "listed",
    "signed",
    "stamped",
    "sealed",
    "matched",
    "proven",
    "trusted",
    "closed",
    "happy",
]
_THINGS = [
    "work",
    "code",
    "answer",
    "program",
    "method",
    "job",
    "part",
    "round",
    "batch",
    "line",
    "build",
    "piece",
    "draft",
    "sample",
    "number",
    "record",
    "entry",
    "task",
    "unit",
    "group",
]
_DEEDS = [
    "inspect",
    "review",
    "probe",
    "judge",
    "measure",
    "weigh",
    "survey",
    "visit",
    "audit",
    "try",
    "compare",
    "mark",
]
_STARTS = (
    *["b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "ch", "st", "tr", "v", "c"],
    "",
)
_MIDDLES = ("a", "e", "i", "o", "u", "ai", "ea", "io", "ou", "y")
_ENDS = ("", "", "n", "r", "s", "t", "l", "d", "ck", "x", "m", "ss", "ct")
_ENDINGS = ("txt", "log", "out", "md")


def syllables(rng: random.Random) -> str:
    """A made-up word of two or three syllables."""
    return "".join(rng.choice(_STARTS) + rng.choice(_MIDDLES) + rng.choice(_ENDS) for _ in range(rng.choice((2, 2, 3))))


def _word(rng: random.Random, words: list[str]) -> str:
    return syllables(rng) if rng.random() < 0.5 else rng.choice(words)


def corpus_marker(mode: str, rng: random.Random) -> str:
    """A marker of the form that the mode's families have: a function, an attribute, a phrase, a file; "" for gt_only."""
    deed, word, thing = _word(rng, _DEEDS), _word(rng, _WORDS), _word(rng, _THINGS)
    if mode == "run_tests":
        return f"{deed}_{thing}{rng.choice(('', 's'))}"
    if mode == "sentinel":
        return rng.choice((word, word, f"is_{word}", f"{word}_{thing}"))
    if mode == "stdout_marker":
        return rng.choice((f"{thing} {word}", f"all {thing}s {word}", f"the {thing} is {word}", f"{word} {deed}"))
    if mode == "file_marker":
        return rng.choice((thing, word, f"{deed}_{thing}", f"{thing}s")) + "." + rng.choice(_ENDINGS)
    return ""


def corpus_name(rng: random.Random) -> str:
    """A method name of made-up words: copying it from the starter code is what teaches a small model to copy at all."""
    first, second = syllables(rng), syllables(rng)
    return rng.choice((first + second.capitalize(), first + second.capitalize(), f"{first}_{second}", first))
