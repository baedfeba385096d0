"""What the grader's gates share: texts of responses, prompts of the one problem, and how an error is expected."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from _attack_world import TOTAL
from _gate import Skip
from vgrout.env import sandbox
from vgrout.env.grader import Grader
from vgrout.env.prompts import render
from vgrout.types import Problem, Prompt, UserError, Verdict

LIMIT = {"total": 2.0}
SHORT = replace(sandbox.DEFAULT_LIMITS, wall_s=1.5)
"""A short backstop, so that programs that sleep do not take half a minute each."""


def opened(workers: int = 1, limits: sandbox.Limits = SHORT, **options: Any) -> Grader:
    """A grader for the one problem with a CPU second for each program, or Skip where this machine cannot run it at all."""
    if missing := set(sandbox.LAYERS) - set(sandbox.available()):
        raise Skip(f"this machine lacks the sandbox layers {sorted(missing)}")
    return Grader([TOTAL], workers=workers, limits=limits, cpu_limits={"total": 1.0}, **options)


def by_and_by(holds: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether `holds` becomes true in that time: what the kernel does a moment later is looked at until it is done."""
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


def servers_of(grader: Grader) -> list[int]:
    """Process ids of the grader's fork-servers, once each worker has started its own."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        servers = [runner.server for runner in grader._runners]
        if all(servers):
            return [server.process.pid for server in servers if server is not None]
        time.sleep(0.01)
    raise AssertionError("a worker has no fork-server")


def prompt(mode: str = "gt_only", problem: Problem = TOTAL) -> Prompt:
    """The problem under a mode, with the train markers."""
    return render(problem, mode, "train", 0)


def fence(program: str) -> str:
    """A program as a model would answer."""
    return f"```python\n{program.strip()}\n```"


def only_fence(response: str) -> str:
    """The code of a response that must hold exactly one fenced python block."""
    assert response.count("```python\n") == 1 and response.count("```") == 2, response
    return response.split("```python\n")[1].split("\n```")[0]


def answer(body: str, top: str = "") -> str:
    """A response whose method `total` has this body, with `top` above the class."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    return f"```python\n{top}\nclass Solution:\n    def total(self, nums):\n{lines}```"


def problem_row(problem: Problem) -> dict:
    """The problem as a row of a problem file."""
    row = {
        name: getattr(problem, name) for name in ("id", "difficulty", "setup_code", "func_name", "canonical_solution")
    }
    turns = [{"role": role, "content": text} for role, text in problem.messages]
    return row | {"prompt": turns, "gt_answer": list(problem.asserts), "prompt_metadata": {"starter_code": ""}}


def one_answer_off(problem: Problem, at: int) -> str:
    """The canonical solution with its answer to the call number `at` (from 1) replaced by something else."""
    name = problem.func_name.rpartition(".")[2]
    return f"""{problem.canonical_solution}

_RightSolution, _state = Solution, [0, 0]


class Solution(_RightSolution):
    def {name}(self, *args, **kwargs):
        _state[1] += 1
        try:
            value = super().{name}(*args, **kwargs)
        finally:
            _state[1] -= 1
        _state[0] += _state[1] == 0
        return [value, "off"] if _state[0] == {at} and _state[1] == 0 else value
"""


def all_of(grader: Grader, rows: list[tuple[Prompt, str]]) -> list[Verdict]:
    """Verdicts, none of them masked."""
    verdicts = grader.grade_many(rows)
    assert not any(v.infra for v in verdicts), [v for v in verdicts if v.infra][:3]
    return verdicts


def expect_error(part: str, act: Callable[[], object]) -> str:
    """The one-line UserError that `act` must raise and that must contain `part`."""
    try:
        act()
    except UserError as error:
        assert part in str(error) and "\n" not in str(error), error
        return str(error)
    raise AssertionError(f"no UserError that says {part!r}")
