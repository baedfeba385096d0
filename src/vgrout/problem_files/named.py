"""Problems by the name of a set or of a file, and a problem as a row of the benchmark's form."""

from __future__ import annotations

from typing import Any

from vgrout.env.problems import load_problems
from vgrout.inputs import SETS
from vgrout.types import Problem


def named_parts(name: str) -> dict[str, tuple[Problem, ...]]:
    """{part: problems}: of a set that ships its train and held-out parts, of `micro:SPLIT` that split, of a file all rows."""
    if name not in SETS:
        return {"file": load_problems(name)}
    train, held_out = SETS[name]()
    return {name.partition(":")[2]: held_out} if ":" in name else {"train": train, "held-out": held_out}


def as_row(problem: Problem) -> dict[str, Any]:
    """The row that `load_problems` would read this problem from."""
    row: dict[str, Any] = {
        "id": int(problem.id) if problem.id.isdecimal() and str(int(problem.id)) == problem.id else problem.id,
        "difficulty": problem.difficulty,
        "prompt": [{"role": role, "content": content} for role, content in problem.messages],
        "gt_answer": list(problem.asserts),
        "setup_code": problem.setup_code,
        "func_name": problem.func_name,
        "canonical_solution": problem.canonical_solution,
        "prompt_metadata": {"starter_code": problem.starter_code},
    }
    if problem.wrong_solutions:
        row["wrong_solutions"] = list(problem.wrong_solutions)
    return row | ({"float_tolerance": problem.float_tolerance} if problem.float_tolerance else {})
