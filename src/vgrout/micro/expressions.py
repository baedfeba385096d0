"""The grammar of the micro world: what a problem asks for, in words and in code.

An *easy* task is source x keep x change x total: "the sum of the squares of the even numbers in nums". A *hard* task is an
easy one with a twist: "..., with nums replaced by its running totals". The corpus shows no program for a twist, so a base
model cannot solve hard tasks, and reinforcement learning is not expected to find their programs within its budget. Every
task can be put into words, written as a program in several styles, evaluated, and turned into near misses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache


@dataclass(frozen=True, slots=True)
class Part:
    """One choice of the grammar: its words, and its code over the item variable `x` (or over the list `out`)."""

    key: str
    words: str
    code: str
    constant: str = ""
    """Family of parts that differ in a number alone: the number off by one is a near miss."""


def _numbered(key: str, words: str, code: str, numbers: range) -> list[Part]:
    return [Part(f"{key}{k}", words.replace("K", str(k)), code.replace("K", str(k)), key) for k in numbers]


_NUMBER_KEEPS = [
    Part("all", "", ""),
    Part("even", "even ", "x % 2 == 0"),
    Part("odd", "odd ", "x % 2 == 1"),
    *_numbered("over", "over-K ", "x > K", range(1, 8)),
    *_numbered("under", "under-K ", "x < K", range(3, 9)),
]
_SIGNED_KEEPS = [Part("positive", "positive ", "x > 0"), Part("negative", "negative ", "x < 0")]
_NUMBER_CHANGES = [
    Part("same", "", "x"),
    Part("square", "squares of the ", "x * x"),
    Part("double", "doubles of the ", "x + x"),
    *_numbered("plus", "plus-K values of the ", "x + K", range(1, 10)),
    *_numbered("times", "times-K values of the ", "x * K", range(3, 10)),
]
_SIGNED_CHANGES = [Part("negate", "negations of the ", "-x"), Part("size", "absolute values of the ", "abs(x)")]
_NUMBER_TOTALS = [
    Part("sum", "sum", "sum(out)"),
    Part("largest", "largest", "max(out, default=0)"),
    Part("smallest", "smallest", "min(out, default=0)"),
    Part("distinct", "distinct count", "len(set(out))"),
]
_LIST_TOTALS = [Part("list", "list", "out"), Part("sorted", "sorted list", "sorted(out)")]
_LETTER_KEEPS = [
    Part("all", "", ""),
    Part("vowel", "vowel ", 'x in "aeiou"'),
    Part("other", "non-vowel ", 'x not in "aeiou"'),
    *[Part(f"not{c}", f"non-{c} ", f'x != "{c}"', "not") for c in "abcdefgh"],
    *[Part(f"after{c}", f"after-{c} ", f'x > "{c}"', "after") for c in "cfhmp"],
    *[Part(f"before{c}", f"before-{c} ", f'x < "{c}"', "before") for c in "dgnu"],
]
_LETTER_CHANGES = [
    Part("same", "", "x"),
    Part("upper", "upper cases of the ", "x.upper()"),
    Part("twice", "doubles of the ", "x + x"),
    *[Part(f"with{c}", f"{c}-marked copies of the ", f'x + "{c}"', "with") for c in "abkqxyz"],
]
_LETTER_TOTALS = [
    Part("string", "string", '"".join(out)'),
    Part("backward", "backward string", '"".join(out[::-1])'),
    Part("count", "count", "len(out)"),
    Part("distinct", "distinct count", "len(set(out))"),
]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the items come from: the argument, how to iterate it, and the parts that make sense there."""

    key: str
    words: str
    """Follows "... of the even "; `{a}` is the argument's name."""
    items: str
    annotation: str
    keeps: tuple[Part, ...]
    changes: tuple[Part, ...]
    totals: tuple[Part, ...]
    twists: tuple[Part, ...]
    """What a hard task does to the argument first; code over the argument `{a}`."""


_LIST_TWISTS = (
    Part("totals", "its running totals", "[sum({a}[: i + 1]) for i in range(len({a}))]"),
    Part("steps", "the steps between its neighbours", "[b - a for a, b in zip({a}, {a}[1:])]"),
    Part("pairs", "the sums of its neighbours", "[a + b for a, b in zip({a}, {a}[1:])]"),
    Part("middle", "itself without both ends", "{a}[1:-1]"),
)
_DIGITS_TWISTS = (
    Part("squared", "its square", "{a} * {a}"),
    Part("mirrored", "itself plus its mirror image", "{a} + int(str({a})[::-1])"),
    Part("shorter", "itself without its last digit", "{a} // 10"),
)
_LETTERS_TWISTS = (
    Part("second", "every second letter of it", "{a}[::2]"),
    Part("inner", "itself without both ends", "{a}[1:-1]"),
    Part("half", "its first half", "{a}[: len({a}) // 2]"),
)
SOURCES: dict[str, Source] = {
    s.key: s
    for s in (
        Source(
            *("list", "numbers in {a}", "{a}", "list[int]"),
            tuple(_NUMBER_KEEPS + _SIGNED_KEEPS),
            tuple(_NUMBER_CHANGES + _SIGNED_CHANGES),
            tuple(_NUMBER_TOTALS + _LIST_TOTALS),
            _LIST_TWISTS,
        ),
        Source(
            *("digits", "digits of {a}", "map(int, str({a}))", "int"),
            tuple(_NUMBER_KEEPS),
            tuple(_NUMBER_CHANGES),
            tuple(_NUMBER_TOTALS + _LIST_TOTALS[:1]),
            _DIGITS_TWISTS,
        ),
        Source(
            *("letters", "letters in {a}", "{a}", "str"),
            tuple(_LETTER_KEEPS),
            tuple(_LETTER_CHANGES),
            tuple(_LETTER_TOTALS),
            _LETTERS_TWISTS,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Easy:
    """source x keep x change x total."""

    source: str
    keep: Part
    change: Part
    total: Part

    @property
    def key(self) -> str:
        """Names the combination; equal keys ask for the same thing."""
        return f"{self.source}-{self.keep.key}-{self.change.key}-{self.total.key}"

    def words(self, argument: str) -> str:
        """The task as a noun phrase."""
        items = SOURCES[self.source].words.format(a=argument)
        return f"the {self.total.words} of the {self.change.words}{self.keep.words}{items}"

    def items(self, argument: str) -> str:
        """The list comprehension that makes `out`."""
        condition = f" if {self.keep.code}" if self.keep.code else ""
        return f"[{self.change.code} for x in {SOURCES[self.source].items.format(a=argument)}{condition}]"

    def expression(self, argument: str) -> str:
        """The whole task as one expression."""
        return self.total.code.replace("out", self.items(argument))


@dataclass(frozen=True, slots=True)
class Hard:
    """An easy task whose argument is replaced first."""

    easy: Easy
    twist: Part

    @property
    def source(self) -> str:
        return self.easy.source

    @property
    def key(self) -> str:
        """Names the combination."""
        return f"{self.easy.key}-{self.twist.key}"

    def words(self, argument: str) -> str:
        """The task as a noun phrase."""
        return f"{self.easy.words(argument)}, with {argument} replaced by {self.twist.words}"

    def replaced(self, argument: str) -> str:
        """The expression that replaces the argument."""
        return self.twist.code.format(a=argument)

    def expression(self, argument: str) -> str:
        """The whole task as one expression."""
        return f"(lambda {argument}: {self.easy.expression(argument)})({self.replaced(argument)})"


Task = Easy | Hard


@cache
def easy_tasks() -> tuple[Easy, ...]:
    """Every easy combination, in a fixed order. No two give the same values."""
    every = (
        Easy(s.key, keep, change, total)
        for s in SOURCES.values()
        for keep in s.keeps
        for change in s.changes
        for total in s.totals
    )
    return tuple(task for task in every if not has_twin(task))


def has_twin(task: Easy) -> bool:
    """Whether another combination gives the same values, or nearly always does.

    A twin in another split would make a held-out problem one that was trained on.
    """
    above = task.keep.constant == "over" or task.keep.key == "positive"
    below = task.keep.constant == "under" or task.keep.key == "negative"
    match task.total.key:
        case "count" | "distinct":
            return task.change.key != "same"  # nearly every change leaves how many there are, and how many differ
        case "largest" if above or (below and task.change.key == "negate"):
            return True  # the largest of all is nearly always among these
        case "smallest" if below:
            return True
    return task.change.key == "size" and (above or task.keep.key == "negative")  # the sign is known


FIELDS = ("keep", "change", "total")


def neighbours(task: Easy, *fields: str) -> Iterator[Easy]:
    """Every easy task that differs from this one in exactly one part (one of `fields`, by default any), twins left out."""
    source = SOURCES[task.source]
    options = {"keep": source.keeps, "change": source.changes, "total": source.totals}
    for field in fields or FIELDS:
        for option in options[field]:
            other = replace(task, **{field: option})
            if other != task and not has_twin(other):
                yield other


def near_miss(task: Task, rng: random.Random) -> Easy:
    """What a careless reader would have solved instead: an easy task with one part mistaken, a hard one without its twist."""
    if isinstance(task, Hard):
        return task.easy if rng.random() < 0.5 else near_miss(task.easy, rng)
    return rng.choice(list(neighbours(task, rng.choice(FIELDS))) or list(neighbours(task)))


def evaluate(task: Task, value: object) -> object:
    """The task's value on one input. The code is the grammar's own, never a model's."""
    return _function(task.expression("value"))(value)


@lru_cache(maxsize=1 << 15)
def _function(expression: str) -> Callable[[object], object]:
    return eval(f"lambda value: {expression}")  # an expression of this module's tables
