"""Write the built-in problem set from its authored form (`scripts/builtin/`).

    python scripts/make_builtin.py            writes src/vgrout/env/data/builtin.jsonl
    python scripts/make_builtin.py --check    fails if the shipped file is not what the sources give

Expected values come from each problem's brute force. Before a row is written, the canonical solution must agree with
the brute force on every case and on 200 further random ones; each wrong solution must fail at least one assert; and no
trivial answer (a constant, an argument handed back) may pass. The output is the same on every run.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from builtin import easy_a, easy_b, hard_a, hard_b, medium_a, medium_b, medium_c, medium_d
from builtin.authored import Authored
from vgrout.env.files import written_atomically
from vgrout.env.prompts import row_turns

OUT = Path(__file__).parents[1] / "src" / "vgrout" / "env" / "data" / "builtin.jsonl"
ASSERTS = 16
FURTHER_CASES = 200
SETUP = """\
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from string import *
from typing import *

inf = float("inf")
"""

Case = tuple[Any, ...]


def authored() -> tuple[Authored, ...]:
    """All problems, easy to hard."""
    modules = (easy_a, easy_b, medium_a, medium_b, medium_c, medium_d, hard_a, hard_b)
    return tuple(problem for module in modules for problem in module.PROBLEMS)


def built() -> bytes:
    """The whole file."""
    rows = [row(problem) for problem in authored()]
    assert len({r["id"] for r in rows}) == len(rows), "an id is used twice"
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def row(problem: Authored) -> dict[str, Any]:
    """The problem as a checked row in the benchmark's form, with the field `split`."""
    head, method, names = _signature(problem.solution)
    rng = Random(problem.id)
    cases = _cases(problem, rng)
    values = [_expected(problem, case) for case in cases]
    further = [problem.drawn(rng) for _ in range(FURTHER_CASES)]
    for case, value in [*zip(cases, values, strict=True), *((c, _expected(problem, c)) for c in further)]:
        assert _run(problem.solution, method, case) == value, (problem.id, case, value)
    for wrong in problem.wrong:
        assert not _passes(wrong, method, cases, values), f"{problem.id}: a wrong solution passes every assert"
    _refuse_trivial(problem, cases, values)
    return {
        "id": problem.id,
        "difficulty": problem.difficulty,
        "split": problem.split,
        "prompt": row_turns(_statement(problem, names, cases, values), method, head),
        "gt_answer": [
            f"assert Solution().{method}({_arguments(names, case)}) == {value!r}"
            for case, value in zip(cases, values, strict=True)
        ],
        "setup_code": SETUP,
        "func_name": f"Solution().{method}",
        "canonical_solution": problem.solution.lstrip(),
        "prompt_metadata": {"starter_code": head + "\n        "},
        "wrong_solutions": [wrong.lstrip() for wrong in problem.wrong],
    }


def _signature(solution: str) -> tuple[str, str, list[str]]:
    """(the head of the program, the method's name, its parameters' names)"""
    (cls,) = ast.parse(solution).body
    assert isinstance(cls, ast.ClassDef)
    (method,) = cls.body
    assert isinstance(method, ast.FunctionDef)
    lines = solution.splitlines()[cls.lineno - 1 : method.body[0].lineno - 1]
    head = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    return head, method.name, [argument.arg for argument in method.args.args[1:]]


def _cases(problem: Authored, rng: Random) -> list[Case]:
    """The authored cases, then random ones that are not there yet."""
    cases = list(problem.fixed)
    while len(cases) < ASSERTS:
        if (case := problem.drawn(rng)) not in cases:
            cases.append(case)
    return cases


def _expected(problem: Authored, case: Case) -> Any:
    return problem.brute(*copy.deepcopy(case))


def _statement(problem: Authored, names: list[str], cases: list[Case], values: list[Any]) -> str:
    examples = [
        f"Example {i + 1}:\n\nInput: {_arguments(names, cases[i])}\nOutput: {_shown(values[i])}\n\n" for i in range(2)
    ]
    return f"{problem.statement}\n\n{''.join(examples)}Constraints:\n\n{problem.constraints}"


def _arguments(names: list[str], case: Case) -> str:
    return ", ".join(f"{name} = {_shown(value)}" for name, value in zip(names, case, strict=True))


def _shown(value: Any) -> str:
    """Python source; strings in double quotes, as the statements write them."""
    return json.dumps(value) if not isinstance(value, bool) else repr(value)


def _program(source: str, method: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(SETUP + source, "<authored>", "exec"), namespace)
    return getattr(namespace["Solution"](), method)


def _run(source: str, method: str, case: Case) -> Any:
    return _program(source, method)(*copy.deepcopy(case))


def _passes(source: str, method: str, cases: Iterable[Case], values: Iterable[Any]) -> bool:
    try:
        return all(_run(source, method, case) == value for case, value in zip(cases, values, strict=True))
    except Exception as error:
        raise AssertionError(f"a wrong solution raises instead of answering: {error!r}\n{source}") from error


def _refuse_trivial(problem: Authored, cases: list[Case], values: list[Any]) -> None:
    """No constant and no argument handed back passes, and the answers vary."""
    kinds = {repr(value) for value in values}
    assert len(kinds) >= (2 if isinstance(values[0], bool) else 4), f"{problem.id}: the answers hardly vary: {kinds}"
    for constant in (0, 1, -1, "", [], None):
        assert any(value != constant for value in values), (problem.id, constant)
    for kind in kinds:
        assert sum(repr(value) == kind for value in values) <= ASSERTS * 0.7, f"{problem.id}: mostly {kind}"
    for position in range(len(cases[0])):
        handed_back = [case[position] == value for case, value in zip(cases, values, strict=True)]
        assert not all(handed_back), f"{problem.id}: argument {position} handed back passes"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="build the built-in problem set")
    parser.add_argument("--check", action="store_true", help="compare with the shipped file instead of writing it")
    check = parser.parse_args().check
    data = built()
    if check:
        sys.exit(
            0 if OUT.read_bytes() == data else f"{OUT} is not what scripts/builtin gives; run this without --check"
        )
    OUT.parent.mkdir(exist_ok=True)
    with written_atomically(OUT) as file:
        file.write(data)
    print(f"{len(authored())} problems, {len(data):,} bytes -> {OUT}")


if __name__ == "__main__":
    main()
