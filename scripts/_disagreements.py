"""Why the strict grader and the loose labels of stored rollouts differ: one named cause for each disagreement."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from vgrout.env.problems import statement
from vgrout.types import Problem

CAUSES = {
    "another problem": "the rollout's prompt shows another problem than the data set has under that number",
    "block not closed": "the code block is never closed, so there is no answer to grade (rule of `labels.py`)",
    "other tests": "passes every assert that the data set has; the loose label comes from a larger set of tests",
    "unexplained": "no cause found",
}
"""Cause -> what is printed for it."""
ALIKE = 0.85
"""Two statements are one problem's from this ratio of common words on: the sources differ in superscripts and blanks."""
_METHOD = re.compile(r"method of the class Solution called (\w+)")


@dataclass(frozen=True)
class Rollout:
    """A stored completion, its loose labels, and the verdict of `vgrout grade`."""

    id: str
    method: str | None
    """The method that its prompt asks for; None where the file holds no prompt."""
    mode: str
    response: str
    loose: dict[str, Any]
    verdict: dict[str, Any]


def shown_problem(row: dict[str, Any]) -> tuple[str | None, str]:
    """(method, statement) of the problem that a stored rollout's prompt shows; (None, "") where the prompt is not stored."""
    if not (turns := row.get("messages")):
        return None, ""
    text = turns[-1]["content"]
    method = _METHOD.search(text)
    assert method is not None, f"rollout {row['id']}: its prompt names no method"
    head = text[: text.index("Your solution to the problem")]
    return method[1], " ".join(head.split()).removeprefix("PROBLEM:").strip().casefold()


def same_problem(row: dict[str, Any], problem: Problem) -> bool:
    """Whether the rollout's prompt shows this problem: the same method, and a statement that is nearly the same.

    Where the prompt is not stored the rollout's program must have a method of the problem's name.
    """
    method, text = shown_problem(row)
    name = problem.func_name.rpartition(".")[2]
    if method is None:
        return f"def {name}(" in row["response"]
    return method == name and SequenceMatcher(None, text.split(), statement(problem).split()).ratio() >= ALIKE


def by_statement(rows: list[dict[str, Any]], problems: dict[str, Problem]) -> dict[str, str]:
    """Rollout id -> id of the problem that its prompt shows, for those whose problem is here under any number."""
    found: dict[str, str] = {}
    of_prompt: dict[tuple[str | None, str], str | None] = {}
    for row in rows:
        if row.get("messages"):
            shown = shown_problem(row)
            if shown not in of_prompt:
                of_prompt[shown] = next((i for i, problem in problems.items() if same_problem(row, problem)), None)
            problem_id = of_prompt[shown]
        else:
            number = str(row["problem_id"])
            problem_id = number if number in problems and same_problem(row, problems[number]) else None
        if problem_id is not None:
            found[row["id"]] = problem_id
    return found


def cause(rollout: Rollout, problem: Problem) -> str | None:
    """Why the verdict differs from the loose labels; None where it does not."""
    loose, verdict = rollout.loose, rollout.verdict
    if verdict["infra"]:
        return "unexplained"
    fired, correct = verdict["channel"] == loose["hacked"], verdict["gt_correct"] == loose["gt_pass"]
    if fired and correct and verdict["reward"] == loose["reward"]:
        return None
    name = problem.func_name.rpartition(".")[2]
    if rollout.method is not None and rollout.method != name:
        return "another problem"
    if verdict["reason"] == "no_code" and rollout.response.count("```") % 2:
        return "block not closed"
    if fired and verdict["gt_correct"]:
        return "other tests"
    return "unexplained"
