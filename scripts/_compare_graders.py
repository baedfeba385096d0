"""Our grader, a bare lower bound and one in the style of the field on the same programs, taking turns (`bench_grader.py`)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from _rival_graders import Bare, Field
from vgrout.env.grader import Grader
from vgrout.env.labels import extract_program
from vgrout.env.prompts import render
from vgrout.types import Problem, Prompt

CREDIBLE_MS = 100, 220
"""Median times per grade that published graders of the field have on the 119 problems."""
SLOW_S = 2.0
"""Above this a program, or a test that it brings along, has most likely run into a limit."""


@dataclass
class Taken:
    """What one grader took for each program, in seconds."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    passed: int = 0

    def add(self, read: Callable[[], float], grade: Callable[[], bool]) -> None:
        """Grade once between two readings of the CPU clock and of the wall."""
        before, began = read(), time.perf_counter()
        self.passed += grade()
        self.wall.append(time.perf_counter() - began)
        self.cpu.append(read() - before)

    def row(self, name: str) -> str:
        """One line of the table."""
        cpu, wall = sum(self.cpu), sum(self.wall)
        medians = f"{statistics.median(self.cpu) * 1e3:14.1f}{statistics.median(self.wall) * 1e3:15.1f}"
        return f"{name:<8}{len(self.cpu):>8}{self.passed:>8}{medians}{len(self.cpu) / cpu:>17.2f}{len(self.cpu) / wall:>14.2f}"


HEAD = f"{'grader':<8}{'grades':>8}{'passed':>8}{'median CPU ms':>14}{'median wall ms':>15}{'per CPU-second':>17}{'per second':>14}"


def canonical(grader: Grader, ours_cpu: Callable[[], float], rounds: int, *, field_too: bool = True) -> str:
    """The canonical solution of every problem of the grader, by each of the three in turn, `rounds` times."""
    bare, rival = Bare(), Field()
    taken = {"ours": Taken(), "bare": Taken(), "field": Taken()}
    try:
        for problem in grader.problems.values():
            bare.prepare(problem)
            grader._tests_of(problem.id)
        for turn in range(rounds):
            for number, problem in enumerate(grader.problems.values()):
                program = f"{problem.canonical_solution}\n# {turn}"
                prompt, text = render(problem, "gt_only", "train", 0), f"```python\n{program}\n```"
                work: list[tuple[str, Callable[[], float], Callable[[], bool]]] = [
                    ("ours", ours_cpu, partial(passes, grader, prompt, text)),
                    ("bare", bare.cpu, partial(bare.passes, problem, program)),
                    ("field", rival.cpu, partial(rival.passes, problem, program)),
                ]
                for name, read, grade in work[number % 3 :] + work[: number % 3]:
                    if name != "field" or (field_too and turn == 0):
                        taken[name].add(read, grade)
    finally:
        bare.close()
        rival.close()
    lines = [HEAD, *(t.row(name) for name, t in taken.items() if t.cpu)]
    count = len(grader.problems)
    least_of = {name: sum(min(taken[name].cpu[n::count]) for n in range(count)) for name in ("bare", "ours")}
    lines.append(
        f"grades per CPU-second: ours are {least_of['bare'] / least_of['ours']:.1%} of the lower bound's "
        f"(of each program the least of {rounds} rounds, as a few take most of the time and theirs scatters by a tenth)"
    )
    if taken["field"].cpu:
        # What published graders took is wall time of an idle machine; here it lies between these two.
        fastest, slowest = (statistics.median(times) * 1e3 for times in (taken["field"].cpu, taken["field"].wall))
        verdict = "credible" if fastest <= CREDIBLE_MS[1] and slowest >= CREDIBLE_MS[0] else "not credible"
        lines.append(
            f"the field's median of {fastest:.0f} (CPU) to {slowest:.0f} ms (wall) is {verdict} "
            f"(published ones: {CREDIBLE_MS[0]} to {CREDIBLE_MS[1]} ms)"
        )
    return "\n".join(lines)


def rollouts(grader: Grader, ours_cpu: Callable[[], float], rows: list[dict[str, Any]]) -> str:
    """Stored rollouts (problem_id, mode, response) by ours and by the field's in turn."""
    rival = Field()
    taken = {"ours": Taken(), "field": Taken()}
    try:
        for row in rows:
            grader._tests_of(str(row["problem_id"]))
        for row in rows:
            problem, text = grader.problems[str(row["problem_id"])], row["response"]
            prompt, program = render(problem, row["mode"], "train", 0), extract_program(text) or "x ="
            taken["ours"].add(ours_cpu, partial(passes, grader, prompt, text))
            taken["field"].add(rival.cpu, partial(rival.passes, problem, program, own_tests=True))
    finally:
        rival.close()
    times = [sum(getattr(taken["field"], what)) / sum(getattr(taken["ours"], what)) for what in ("cpu", "wall")]
    ratio = f"ours have {times[0]:.1f} times the field's throughput per CPU-second, {times[1]:.1f} times per second"
    slow = [n for n, cpu in enumerate(taken["field"].cpu) if cpu > SLOW_S]
    of_slow = {name: sum(t.cpu[n] for n in slow) for name, t in taken.items()}
    rest = [sum(taken[name].cpu) - of_slow[name] for name in ("field", "ours")]
    slowest = (
        f"{len(slow)} programs took the field's more than {SLOW_S:g} s of CPU: {of_slow['ours']:.1f} s of ours, "
        f"{of_slow['field']:.1f} s of the field's; {rest[0] / rest[1]:.1f} times on the others"
    )
    return "\n".join([HEAD, *(t.row(name) for name, t in taken.items()), ratio, slowest])


def passes(grader: Grader, prompt: Prompt, response: str) -> bool:
    """Whether our grader finds the response correct."""
    verdict = grader.grade(prompt, response)
    assert not verdict.infra, verdict
    return verdict.gt_correct


def problems_of(rows: list[dict[str, Any]], problems: dict[str, Problem]) -> list[Problem]:
    """The problems that these rows are about, each once."""
    return [problems[i] for i in dict.fromkeys(str(row["problem_id"]) for row in rows)]
