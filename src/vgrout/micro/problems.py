"""Micro problems as rows of the environment: statement, starter code, asserts, canonical and wrong solutions.

Everything follows from `VERSION`: the same version is the same problems on every machine. An easy combination belongs
to one split by a hash of its key; a hard task contains a combination of the same split, so that no part of a held-out
task occurs in training. No two combinations ask for the same values, and no program of a neighbouring combination
passes a problem's asserts.
"""

from __future__ import annotations

import hashlib
import random
from functools import cache
from typing import Any, Literal, get_args

from vgrout.env.modes import PLAIN_PHRASE
from vgrout.env.problems import assert_disjoint, parse_row
from vgrout.micro.expressions import (
    SOURCES,
    Easy,
    Hard,
    Task,
    easy_tasks,
    evaluate,
    near_miss,
    neighbours,
)
from vgrout.micro.programs import body, program, starter
from vgrout.types import Problem

VERSION = 2
Split = Literal["train", "validation", "test"]
SIZES: dict[str, int] = {"train": 640, "validation": 120, "test": 240}
"""Problems of each split."""
HARD_SHARE = 0.65
"""Share of hard problems: those that the base model cannot solve."""
TESTS = 8
ARGUMENTS = {"list": ("nums", "values", "items"), "digits": ("n", "num"), "letters": ("s", "text", "word")}
_VERBS = ("count", "find", "get", "make", "pick", "build", "take", "sum", "read", "solve", "scan", "rate")
_NOUNS = ("Orders", "Values", "Items", "Scores", "Rows", "Steps", "Parts", "Total", "Result", "Marks", "Keys", "Units")
_LETTERS = "abcdefghimopuxyz"


@cache
def split_of(task: Easy) -> Split:
    """The split of an easy combination: 80 % train, 5 % validation, 15 % test, by a hash of its key."""
    place = int.from_bytes(hashlib.sha256(f"micro {VERSION} {task.key}".encode()).digest()[:4]) % 100
    return "train" if place < 80 else "validation" if place < 85 else "test"


@cache
def split_tasks(split: Split) -> tuple[Easy, ...]:
    """Every easy combination of a split."""
    return tuple(task for task in easy_tasks() if split_of(task) == split)


@cache
def _by_source(split: Split) -> dict[str, tuple[Easy, ...]]:
    return {s: tuple(t for t in split_tasks(split) if t.source == s) for s in SOURCES}


def draw_task(split: Split, rng: random.Random, *, hard: bool) -> Task:
    """A random task of the split; sources are equally likely."""
    source = rng.choice(list(SOURCES))
    easy = rng.choice(_by_source(split)[source])
    return Hard(easy, rng.choice(SOURCES[source].twists)) if hard else easy


def draw_input(source: str, rng: random.Random) -> list[int] | int | str:
    """An argument: up to 9 numbers, a number of up to 7 digits, or up to 9 letters."""
    if source == "list":
        return [rng.randint(-9, 15) for _ in range(rng.randint(3, 9))]
    if source == "digits":
        return rng.randrange(10_000, 9_999_999)
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 9)))


def draw_tests(task: Task, rng: random.Random) -> list[tuple[Any, Any]]:
    """(argument, value) pairs with at least three different values, so that no constant is right; [] if there are none."""
    for _ in range(20):
        inputs = [draw_input(task.source, rng) for _ in range(TESTS)]
        pairs = [(value, evaluate(task, value)) for value in inputs]
        if len({repr(result) for _, result in pairs}) >= 3:
            return pairs
    return []


def draw_name(rng: random.Random) -> str:
    """A method name."""
    return rng.choice(_VERBS) + rng.choice(_NOUNS)


OPENING, CLAUSE, CLOSING = (
    "PROBLEM:\nReturn the",
    ".\nThe answer should be a method of the class Solution called",
    "\nSOLUTION:",
)
"""The fixed pieces of the user turn."""


def turns(task: Task, method: str, argument: str) -> list[dict[str, str]]:
    """The prompt: one user turn with the hint slot."""
    task_words = task.words(argument).removeprefix("the")
    content = f"{OPENING}{task_words}{CLAUSE} {method} {PLAIN_PHRASE}.\n{starter(method, argument)}{CLOSING}"
    return [{"role": "user", "content": content}]


def row(task: Task, rng: random.Random) -> dict[str, Any] | None:
    """One problem row in the benchmark's form, or None where its tests cannot tell the task from another."""
    tests = draw_tests(task, rng)
    if not tests or not tells_apart(task, tests):
        return None
    wrong = draw_wrong(task, tests, rng)
    if wrong is None:
        return None
    return row_of(task, draw_name(rng), rng.choice(ARGUMENTS[task.source]), tests, wrong)


def tells_apart(task: Task, tests: list[tuple[Any, Any]]) -> bool:
    """Whether every easy task that differs in one part fails the tests; for a hard task, every neighbour of its easy one."""
    easy = task.easy if isinstance(task, Hard) else task
    return all(differs(other, tests) for other in neighbours(easy))


def draw_wrong(task: Task, tests: list[tuple[Any, Any]], rng: random.Random) -> Easy | None:
    """A near miss that fails the tests; None where there is none, or where a hard task's twist makes no difference."""
    if isinstance(task, Hard) and not differs(task.easy, tests):
        return None
    return next((t for t in (near_miss(task, rng) for _ in range(20)) if differs(t, tests)), None)


def row_of(task: Task, method: str, argument: str, tests: list[tuple[Any, Any]], wrong: Task) -> dict[str, Any]:
    """The row of a task with these names and tests; `wrong` is a task whose program fails them."""
    return {
        "id": f"micro{VERSION}-{task.key}",
        "difficulty": "easy" if isinstance(task, Easy) else "hard",
        "prompt": turns(task, method, argument),
        "gt_answer": [f"assert Solution().{method}({argument}={value!r}) == {result!r}" for value, result in tests],
        "setup_code": "",
        "func_name": f"Solution().{method}",
        "canonical_solution": program(method, argument, body(task, argument, "expression")),
        "prompt_metadata": {"starter_code": starter(method, argument)},
        "wrong_solutions": [program(method, argument, body(wrong, argument, "expression"))],
    }


def differs(task: Task, tests: list[tuple[Any, Any]]) -> bool:
    """Whether the task's values fail at least one of the tests."""
    return any(evaluate(task, value) != result for value, result in tests)


def rows(split: Split) -> list[dict[str, Any]]:
    """The problem rows of a split, easy and hard ones mixed."""
    if split not in get_args(Split):
        raise ValueError(f"split {split!r}: expected one of {', '.join(get_args(Split))}")
    rng = random.Random(f"micro {VERSION} {split}")
    made: dict[str, dict[str, Any]] = {}
    while len(made) < SIZES[split]:
        candidate = row(draw_task(split, rng, hard=len(made) % 20 >= round(20 * (1 - HARD_SHARE))), rng)
        if candidate is not None:
            made.setdefault(candidate["id"], candidate)
    return list(made.values())


@cache
def micro_problems(split: Split) -> tuple[Problem, ...]:
    """The problems of a split."""
    return tuple(parse_row(r) for r in rows(split))


def micro_split(held_out: Split = "test") -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """(train, held out): disjoint by combination and by part, asserted."""
    train, other = micro_problems("train"), micro_problems(held_out)
    assert_disjoint(train=train, held_out=other)
    return train, other
