"""The corpus's own markers, so that a base model learns to copy a marker from its hint.

They are whole markers that neither the train nor the eval family of their mode contains. Single words are shared: half
are made up from pieces of the tokenizer's vocabulary, and the words of all families are such pieces.
"""

from __future__ import annotations

import itertools
import keyword
import random
from collections.abc import Iterable
from dataclasses import dataclass

from vgrout.env.modes import mode_named

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
_ENDINGS = ("txt", "log", "out", "md")
MADE_UP = 0.5
"""Share of made-up words in markers; the rest are plain words, of which the other families consist."""
_SYLLABLES = (
    ["b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "ch", "st", "tr"],
    ["a", "e", "i", "o", "u", "ai", "ea", "io", "ou", "y"],
    ["", "", *["n", "r", "s", "t", "l", "d", "ck", "x", "m", "ss", "ct"]],
)


@dataclass(frozen=True)
class Words:
    """What made-up words are put together from: a beginning, then up to one continuation."""

    beginnings: tuple[str, ...]
    continuations: tuple[str, ...]

    def made_up(self, rng: random.Random) -> str:
        """A word that nobody knows; it takes copying to repeat it."""
        parts = [
            rng.choice(self.beginnings),
            *(rng.choice(self.continuations) for _ in range(rng.choice((0, 0, 1, 1)))),
        ]
        return "".join(parts)


SYLLABLES = Words(*(tuple("".join(parts) for parts in itertools.product(*_SYLLABLES)) for _ in range(2)))
"""Words of syllables, for the text that a tokenizer is trained on."""


BLANK = "\u0120"
"""How byte-level BPE writes a leading blank."""


def words_of(vocabulary: Iterable[str]) -> Words:
    """Words of a tokenizer's own pieces, so that every piece gets copied."""
    pieces = sorted(vocabulary)
    inner = [piece for piece in pieces if _plain(piece)]
    return Words(tuple(p[1:] for p in pieces if p.startswith(BLANK) and _plain(p[1:])), tuple(inner))


def _plain(piece: str) -> bool:
    return piece.isascii() and piece.isalpha() and piece.islower() and not keyword.iskeyword(piece)


def _word(rng: random.Random, words: Words, known: list[str]) -> str:
    return words.made_up(rng) if rng.random() < MADE_UP else rng.choice(known)


def corpus_marker(mode: str, rng: random.Random, words: Words) -> str:
    """A marker of the form that the mode's families have, and of neither: a function, an attribute, a phrase, a file.

    "" for gt_only.
    """
    taken = mode_named(mode).family("train") + mode_named(mode).family("eval")
    while True:
        marker = _marker(mode, rng, words)
        # A printed phrase counts wherever it is contained, and a keyword is no name.
        if not any(known in marker for known in taken) and not keyword.iskeyword(marker):
            return marker


def _marker(mode: str, rng: random.Random, words: Words) -> str:
    """Words and their number at random: a fixed build would be learned in place of copying."""
    deed, word, thing, more = (_word(rng, words, known) for known in (_DEEDS, _WORDS, _THINGS, _WORDS))
    if mode == "run_tests":
        return rng.choice((f"{deed}_{thing}", f"{deed}_{thing}", f"{deed}_{more}_{thing}"))
    if mode == "sentinel":
        return rng.choice((word, word, f"is_{word}", f"{word}_{thing}"))
    if mode == "stdout_marker":
        return " ".join((deed, thing, word, more)[: rng.choice((2, 3, 3, 4))])
    if mode == "file_marker":
        return rng.choice((thing, word, f"{deed}_{thing}")) + "." + rng.choice(_ENDINGS)
    return ""


def corpus_name(rng: random.Random, words: Words) -> str:
    """A method name of made-up words: it, too, has to be copied, from the starter code."""
    while True:
        first, second = words.made_up(rng), words.made_up(rng)
        name = rng.choice((first + second.capitalize(), first + second.capitalize(), f"{first}_{second}", first))
        if not keyword.iskeyword(name):
            return name
