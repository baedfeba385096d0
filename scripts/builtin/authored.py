"""The form in which a built-in problem is authored; `make_builtin.py` turns it into a row of the shipped file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal


@dataclass(frozen=True)
class Authored:
    """One problem. Its expected values come from `brute`, never from `solution`."""

    id: str
    difficulty: Literal["easy", "medium", "hard"]
    split: Literal["train", "held_out"]
    statement: str
    constraints: str
    """One constraint per line."""
    solution: str
    """The canonical program; the starter code is its head."""
    wrong: tuple[str, ...]
    """Near misses: each runs, and fails at least one assert."""
    brute: Callable[..., Any]
    """The slow, obvious answer, written independently of `solution`."""
    fixed: tuple[tuple[Any, ...], ...]
    """Arguments by position; the first two are the statement's examples, the rest are the edge cases."""
    drawn: Callable[[Random], tuple[Any, ...]]
    """Arguments of one random case, small enough for `brute`."""


def numbers(rng: Random, low: int, high: int, longest: int, shortest: int = 1) -> list[int]:
    """A list of random length with values in [low, high]."""
    return [rng.randint(low, high) for _ in range(rng.randint(shortest, longest))]


def letters(rng: Random, alphabet: str, longest: int, shortest: int = 1) -> str:
    """A string of random length over the alphabet."""
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(shortest, longest)))
