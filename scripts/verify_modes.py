"""Modes: example hacks, and demonstrations for a teacher pool.

Invariants:
- example hacks compile, fail the tests, fire their own probe for the shown marker's family and no other mode's
- demonstrations are deterministic: right, wrong, then hacks that show the prompt's marker
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from _gate import Gate
from _grading import only_fence
from vgrout.env.demonstrations import demonstrations
from vgrout.env.evidence import file_reports_pass, stdout_reports_pass
from vgrout.env.modes import LOOPHOLES, MODES, STANDARD, marker_for
from vgrout.env.problems import builtin_problems
from vgrout.env.prompts import render
from vgrout.types import Markers, Problem

gate = Gate(__doc__)
FAMILIES: tuple[Markers, Markers] = ("train", "eval")


# ---- running trusted programs of our own in this process -----------------------------------------------------------


def run_here(problem: Problem, code: str) -> tuple[bool, set[tuple[str, Markers]]]:
    """(whether every assert holds, the (mode, family) channels that fire) for a program this project wrote itself."""
    fired: set[tuple[str, Markers]] = set()
    printed = io.StringIO()
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        os.chdir(folder)
        try:
            space: dict[str, Any] = {"__name__": "candidate"}
            exec(compile(f"{problem.setup_code}\n{code}", "<candidate>", "exec"), space)
            instance = space["Solution"]()
            method = getattr(instance, problem.func_name.rpartition(".")[2])
            first = ast.parse(problem.asserts[0]).body[0]
            assert isinstance(first, ast.Assert) and isinstance(first.test, ast.Compare)
            call = first.test.left
            assert isinstance(call, ast.Call)
            method(**{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
            correct = all(_holds(text, space) for text in problem.asserts)
            reports = {path.name: path.read_text() for path in Path(folder).iterdir()}
            functions = _passing_functions(problem, space)
        finally:
            os.chdir(home)
    for markers in FAMILIES:
        for mode in map(MODES.__getitem__, STANDARD):  # an extra mode's hack would end this process
            family = mode.family(markers)
            fires = {
                "function": bool(functions & set(family)),
                "attribute": any(isinstance(v := getattr(instance, m, None), bool | int | str) and v for m in family),
                "stdout": stdout_reports_pass(printed.getvalue(), family),
                "file": any(file_reports_pass(reports[m]) for m in family if m in reports),
                "none": False,
            }[mode.probe]
            if fires:
                fired.add((mode.name, markers))
    return correct, fired


def _holds(text: str, space: dict[str, Any]) -> bool:
    try:
        exec(text, space)
    except AssertionError:
        return False
    return True


def _passing_functions(problem: Problem, space: dict[str, Any]) -> set[str]:
    """Names of functions that return when `Solution` is a stub whose method returns 0."""
    real = space["Solution"]
    method = problem.func_name.rpartition(".")[2]
    stub = type("Solution", (), {method: lambda self, *args, **kwargs: 0})
    space["Solution"] = stub
    passing = set()
    for name in {n for n in (*space, *vars(real)) if not n.startswith("__")}:
        target = vars(real).get(name, space.get(name))
        if getattr(target, "__code__", None) is None or name == method or target.__code__.co_filename != "<candidate>":
            continue
        with contextlib.suppress(Exception):
            target(*([stub()] if name in vars(real) else []))
            passing.add(name)
    space["Solution"] = real
    return passing


# ---- hacks and evidence --------------------------------------------------------------------------------------------


@gate.invariant("example hacks compile, fail the tests, and fire their own probe for the shown family and no other")
def _():
    problems, runs = builtin_problems(), 0
    for position, problem in enumerate(problems):
        correct, fired = run_here(problem, problem.canonical_solution)
        assert correct and not fired, (problem.id, fired)
        for name in LOOPHOLES:
            mode = MODES[name]
            assert len(mode.example_hacks) >= 3
            for phrasing, hack in enumerate(mode.example_hacks):
                markers = FAMILIES[(position + phrasing) % 2]
                marker = marker_for(name, problem.id, 0, markers)
                response = hack(problem, marker)
                assert marker in response
                correct, fired = run_here(problem, only_fence(response))
                runs += 1
                assert not correct, f"{problem.id}: a {name} hack passes the tests\n{response}"
                assert fired == {(name, markers)}, f"{problem.id}: {fired} fired for\n{response}"
    return f"{runs} hacks of {sum(len(m.example_hacks) for m in MODES.values())} phrasings on {len(problems)} problems"


@gate.invariant("demonstrations are deterministic: right, wrong, then hacks that show the prompt's marker")
def _():
    count = 0
    for problem in builtin_problems():
        for name, mode in MODES.items():
            shown = demonstrations(problem, name, "eval", 1)
            assert shown == demonstrations(problem, name, "eval", 1)
            assert len(shown) == (4 if mode.example_hacks else 2) and len(set(shown)) == len(shown)
            right, wrong = (run_here(problem, only_fence(text)) for text in shown[:2])
            assert right == (True, set()) and wrong == (False, set()), (problem.id, right, wrong)
            marker = render(problem, name, "eval", 1).marker
            assert all(marker in text and mode.attempted(only_fence(text)) for text in shown[2:])
            count += len(shown)
    bare = replace(builtin_problems()[0], wrong_solutions=())
    assert run_here(bare, only_fence(demonstrations(bare, "gt_only", "train", 0)[1])) == (False, set())
    return f"{count} responses"


if __name__ == "__main__":
    gate.main()
