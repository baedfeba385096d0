"""Gate: the micro world's problems are what they claim to be, under the grader that LeetCode problems get.

- a version is the same rows on every machine, with the stated share of hard ones
- no combination, and no part of a hard one, is in two splits, nor under another name that gives the same values
- at most one held-out problem in a hundred has asserts that another easy program passes, and that one is no neighbour
- no constant answer is right, and every prompt can show every loophole's hint
- canonical programs in every style are correct, the stored wrong ones are not, all in the sandbox
- an example hack fires its own mode's channel and no other's
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from functools import cache

from _gate import Gate
from vgrout.env.demonstrations import demonstrations
from vgrout.env.grader import Grader
from vgrout.env.modes import LOOPHOLES
from vgrout.env.problems import parse_row
from vgrout.env.prompts import render
from vgrout.micro.expressions import SOURCES, Hard, Task, easy_tasks
from vgrout.micro.problems import (
    HARD_SHARE,
    SIZES,
    VERSION,
    draw_input,
    draw_task,
    micro_problems,
    row,
    rows,
    split_of,
    split_tasks,
)
from vgrout.micro.programs import STYLES, body, program, response
from vgrout.types import Problem

gate = Gate(__doc__)
ROWS = {2: "b0b6686e37191292"}
"""First 16 hex digits of the sha256 over all rows, by version of the family."""
SPLITS = ("train", "validation", "test")


@gate.invariant("a version is the same rows everywhere")
def _() -> str:
    text = "".join(json.dumps(row, sort_keys=True) for split in SPLITS for row in rows(split))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == ROWS[VERSION], f"version {VERSION} has rows {digest}, recorded {ROWS[VERSION]}: raise VERSION"
    counts = {split: Counter(p.difficulty for p in micro_problems(split)) for split in SPLITS}
    assert all(c["hard"] == HARD_SHARE * SIZES[split] == SIZES[split] - c["easy"] for split, c in counts.items()), (
        counts
    )
    return f"{digest}, " + ", ".join(f"{split} {sum(c.values())}" for split, c in counts.items())


@gate.invariant("splits share no combination and no part of one")
def _() -> str:
    keys = {split: {task.key for task in split_tasks(split)} for split in SPLITS}
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == len(easy_tasks())
    rng = random.Random(0)
    for split in SPLITS:
        for hard in (False, True):
            for _ in range(2000):
                task = draw_task(split, rng, hard=hard)
                assert all(split_of(part) == split for part in parts(task)), (split, task.key)
    ids = {split: {p.id for p in micro_problems(split)} for split in SPLITS}
    assert not any(ids[a] & ids[b] for a in SPLITS for b in SPLITS if a < b)
    return f"{len(easy_tasks())} combinations: " + ", ".join(f"{s} {len(k)}" for s, k in keys.items())


@gate.invariant("no two combinations give the same values, so none is in two splits under two names")
def _() -> str:
    rng = random.Random(1)
    inputs = {source: [draw_input(source, rng) for _ in range(300)] for source in SOURCES}
    known: dict[tuple[str, str], str] = {}
    for task, function in functions():
        values = repr([function(value) for value in inputs[task.source]])
        other = known.setdefault((task.source, values), task.key)
        assert other == task.key, f"{task.key} and {other} are twins"
    return f"{len(known)} combinations on 300 inputs each"


@gate.invariant("hardly a held-out problem's asserts are passed by another easy program, and none by a neighbour")
def _() -> str:
    checked, passed = 0, []
    for split in ("validation", "test"):
        for problem in micro_problems(split):
            source = problem.id.split("-")[1]
            tests = [inputs_and_value(line) for line in problem.asserts]
            for task, function in functions():
                if task.source == source and f"micro{VERSION}-{task.key}" != problem.id:
                    checked += 1
                    if all(function(value) == result for value, result in tests):
                        passed.append((problem.id.split("-")[1:], task.key.split("-")))
    assert len(passed) <= 0.01 * sum(SIZES[split] for split in ("validation", "test")), passed
    assert all(sum(a != b for a, b in zip(own, other, strict=False)) >= 2 for own, other in passed), passed
    return f"{checked:,} pairs of a problem and a program, {len(passed)} passed"


@gate.invariant("no constant is right, and no statement is that of another split")
def _() -> str:
    fewest = 99
    texts: dict[str, str] = {}
    for split in SPLITS:
        for problem in micro_problems(split):
            tests = [ast.parse(line).body[0] for line in problem.asserts]
            values = {
                ast.unparse(t.test.comparators[0])
                for t in tests
                if isinstance(t, ast.Assert) and isinstance(t.test, ast.Compare)
            }
            fewest = min(fewest, len(values))
            statement = problem.messages[-1][1].split("The answer should")[0]
            assert texts.setdefault(statement, split) == split, f"{problem.id}: also a statement of {texts[statement]}"
    assert fewest >= 3, fewest
    return f"{len(texts)} statements, at least {fewest} different values among {len(problem.asserts)} asserts"


@gate.invariant("programs of every style are correct in the sandbox, the stored wrong ones are not")
def _() -> str:
    grades, problems = [], sample(24)
    for problem, task in problems:
        method, argument = problem.func_name.removeprefix("Solution()."), argument_of(problem)
        grades += [(problem, program(method, argument, body(task, argument, style)), True) for style in STYLES]
        grades += [(problem, problem.canonical_solution, True), *((problem, w, False) for w in problem.wrong_solutions)]
    with Grader([p for p, _ in problems]) as grader:
        verdicts = grader.grade_many([(render(p, "gt_only", "eval", 0), response(code)) for p, code, _ in grades])
    wrong = [(p.id, code) for (p, code, right), v in zip(grades, verdicts, strict=True) if v.gt_correct != right]
    assert not wrong, wrong[:3]
    return f"{len(grades)} programs of {len(problems)} problems"


@gate.invariant("a hack fires the channel of its own mode and no other's")
def _() -> str:
    grades = []
    for problem, _ in sample(8):
        for mode in LOOPHOLES:
            hack = demonstrations(problem, mode, "train", 0)[2]
            grades += [(problem, shown, hack, shown == mode) for shown in (*LOOPHOLES, "gt_only")]
    with Grader([p for p, *_ in grades]) as grader:
        verdicts = grader.grade_many([(render(p, shown, "train", 0), text) for p, shown, text, _ in grades])
    wrong = [
        (p.id, shown, text) for (p, shown, text, own), v in zip(grades, verdicts, strict=True) if v.exploited != own
    ]
    assert not wrong, wrong[:3]
    return f"{len(grades)} grades"


def parts(task: Task) -> tuple:
    return (task.easy,) if isinstance(task, Hard) else (task,)


@cache
def sample(n: int) -> tuple[tuple[Problem, Task], ...]:
    """n new problems of the test split with their tasks, easy and hard in turn."""
    rng, found = random.Random(1), []
    while len(found) < n:
        task = draw_task("test", rng, hard=len(found) % 2 == 1)
        made = row(task, rng)
        if made is not None:
            found.append((parse_row(made), task))
    return tuple(found)


@cache
def functions() -> tuple[tuple[Task, Callable[[object], object]], ...]:
    """Every easy combination with its program, compiled."""
    return tuple((task, eval(f"lambda value: {task.expression('value')}")) for task in easy_tasks())


def inputs_and_value(line: str) -> tuple[object, object]:
    """The argument and the expected value of an assert."""
    test = ast.parse(line, mode="exec").body[0]
    assert isinstance(test, ast.Assert) and isinstance(test.test, ast.Compare)
    call = test.test.left
    assert isinstance(call, ast.Call)
    return ast.literal_eval(call.keywords[0].value), ast.literal_eval(test.test.comparators[0])


def argument_of(problem: Problem) -> str:
    return problem.starter_code.rpartition(", ")[2].removesuffix("):")


if __name__ == "__main__":
    gate.main()
