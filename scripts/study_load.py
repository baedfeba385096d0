"""Verdicts on an idle and on an oversubscribed machine: the same programs, round after round, and every flip.

    python scripts/study_load.py --problems leetcode_test_medhard.jsonl.gz --rounds 20

Graded are every canonical solution, each with one answer changed, and programs that never end. First as the machine is,
which measures the CPU limits and gives the verdicts to compare with; then in rounds beside processes that keep every
usable core busy (`--factor` runnable processes a core, the grader's own child among them). Exit code 1 where a verdict
differs from the first one, a canonical solution is not correct, or a grade was masked.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from _grading import fence, one_answer_off
from vgrout.cores import usable_cores
from vgrout.env.grader import Grader
from vgrout.env.problems import load_problems
from vgrout.env.prompts import render
from vgrout.types import Problem, Prompt, Verdict

FIELDS = ("gt_correct", "channel", "reward", "label", "reason", "outcome", "infra")
"""What load may not change."""
ENDLESS = 2
"""Programs that never end in a round; each takes its whole CPU limit."""


@contextmanager
def busy(processes: int) -> Generator[None]:
    """So many processes that do nothing but compute."""
    loop = [
        sys.executable,
        "-S",
        "-c",
        "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**6))",
    ]
    burners = [subprocess.Popen(loop) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
        for burner in burners:
            burner.wait()


def programs(problems: list[Problem]) -> list[tuple[Prompt, str, str]]:
    """(prompt, response, what it is)."""
    work = []
    for number, problem in enumerate(problems):
        prompt = render(problem, "gt_only", "train", 0)
        work.append((prompt, fence(problem.canonical_solution), "canonical"))
        work.append((prompt, fence(one_answer_off(problem, (len(problem.asserts) + 1) // 2)), "wrong"))
        if number < ENDLESS:
            method = problem.func_name.rpartition(".")[2]
            endless = (
                f"class Solution:\n    def {method}(self, *args, **kwargs):\n        while True:\n            pass"
            )
            work.append((prompt, fence(endless), "endless"))
    return work


def one_round(grader: Grader, work: list[tuple[Prompt, str, str]]) -> list[Verdict]:
    """The verdicts on all programs, none from the cache."""
    grader._cache.clear()
    return grader.grade_many([(prompt, response) for prompt, response, _ in work])


def flips(first: list[Verdict], later: list[Verdict], work: list[tuple[Prompt, str, str]]) -> list[str]:
    """What differs between two rounds."""
    found = []
    for (prompt, _, kind), one, other in zip(work, first, later, strict=True):
        if differing := [name for name in FIELDS if getattr(one, name) != getattr(other, name)]:
            values = ", ".join(f"{name} {getattr(one, name)!r} -> {getattr(other, name)!r}" for name in differing)
            found.append(
                f"problem {prompt.problem_id}, {kind}: {values}; {other.cpu_s:.1f} s CPU in {other.wall_s:.1f} s"
            )
    return found


def not_as_due(verdicts: list[Verdict], work: list[tuple[Prompt, str, str]]) -> list[str]:
    """Programs whose verdict is not what they were made for."""
    due = {"canonical": (True, ""), "wrong": (False, "mismatch"), "endless": (False, "cpu")}
    return [
        f"problem {prompt.problem_id}, {kind}: {verdict.reason or 'correct'}"
        for (prompt, _, kind), verdict in zip(work, verdicts, strict=True)
        if (verdict.gt_correct, verdict.reason) != due[kind]
    ]


def main() -> None:
    """Grade in rounds and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--factor", type=int, default=4, help="runnable processes per core")
    parser.add_argument("--limit", type=int, help="take only so many problems, evenly spread")
    options = parser.parse_args()
    problems = list(load_problems(options.problems))
    problems = problems[:: max(1, len(problems) // options.limit)][: options.limit] if options.limit else problems
    work, bad, cores = programs(problems), 0, usable_cores()
    with Grader(problems) as grader:
        limits = grader.measure_limits()
        first = one_round(grader, work)
        for line in (wrong := not_as_due(first, work)):
            print(f"before: {line}")
        bad += len(wrong)
        print(
            f"{len(work)} programs; CPU limits: {dict(sorted((s, [*limits.values()].count(s)) for s in {*limits.values()}))}"
        )
        with busy((options.factor - 1) * cores):
            for number in range(1, options.rounds + 1):
                began = time.monotonic()
                verdicts = one_round(grader, work)
                found = flips(first, verdicts, work)
                bad += len(found)
                slower = statistics.median(v.wall_s / max(v.cpu_s, 1e-3) for v in verdicts)
                seconds, load = time.monotonic() - began, os.getloadavg()[0]
                print(
                    f"round {number}: {len(found)} flips, {seconds:.0f} s, wall/CPU {slower:.1f}, load {load:.1f}",
                    flush=True,
                )
                for line in found:
                    print(f"  {line}")
    print(
        f"{bad} verdicts differ or are not what they should be; {options.rounds} rounds, {options.factor} processes a core"
    )
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
