"""What a grade costs: CPU per grade by mode, split into the grader's process, its fork-server and the sandboxed children.

    taskset -c 1 .venv/bin/python scripts/bench_grader.py --grades 1600

Micro problems under every mode; the responses are in turn the canonical solution, a wrong one and an example hack of the
mode (wrong again where the mode has none), each made unique by a comment, so that none is answered from the cache. The
modes are interleaved in chunks, so that other work on the machine hits them alike. One worker. CPU time is what counts;
the wall time of one grade, waited for alone, is printed as a median.

The children's figures are what the kernel counted for each until it was reaped, the fork-server's those of its own
schedule. A mode's figure is the median over its chunks. Start-up, the parsing of the problems' tests with it, is left
out. `faults` are the memory pages that a grade's children had to map or copy, which is most of what they cost and, unlike
time, hardly depends on what else the machine does.

    taskset -c 1 .venv/bin/python scripts/bench_grader.py --against leetcode_test_medhard.jsonl.gz \\
        --rollouts out/real_rollouts/NAME.statement.responses.jsonl.gz --rollout-problems out/real_rollouts/problems.jsonl.gz

compares our grader with a bare fork and exec (the lower bound: nothing is contained) and with a grader in the style of
the field (a fresh interpreter for each check), which take turns on each canonical solution of a problem file; and with
the latter on stored rollouts, as `study_real_rollouts.py` writes them. See `_rival_graders`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _compare_graders import canonical, problems_of, rollouts
from vgrout.env.grader import Grader
from vgrout.env.modes import MODES, STANDARD
from vgrout.env.problems import load_problems
from vgrout.env.prompts import render
from vgrout.env.rows import read_rows
from vgrout.env.watch import Exit
from vgrout.env.worker import Server
from vgrout.micro.problems import micro_problems
from vgrout.types import Problem, Prompt

CHUNK = 80
"""Grades between two readings of the clocks."""


@dataclass
class Cost:
    """What the grades of one mode took, in milliseconds, and how many page faults their children had."""

    chunks: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Per grade, in each chunk: parent, server, children, page faults."""
    wall: list[float] = field(default_factory=list)

    def row(self, name: str) -> str:
        """One line of the table."""
        parent, server, children, faults = (statistics.median(column) for column in zip(*self.chunks, strict=True))
        total = statistics.median(sum(chunk[:3]) for chunk in self.chunks)
        parts = "".join(f"{value:11.2f}" for value in (parent, server, children, total))
        return f"{name:<14}{len(self.wall):>7}{parts}{1000 / total:>11.0f}{faults:>8.0f}{statistics.median(self.wall):>11.2f}"


class Clocks:
    """CPU milliseconds so far of this process, of the fork-server and of its reaped children, and their page faults."""

    def __init__(self, server: int):
        self.server = Path(f"/proc/{server}")
        self.children = 0.0
        plain = Server.run

        def counted(*args: Any, **kwargs: Any) -> Exit:
            end = plain(*args, **kwargs)
            self.children += end.cpu_s * 1000
            return end

        Server.run = counted

    def read(self) -> tuple[float, float, float, float]:
        """Parent, server, children, page faults."""
        faults = int((self.server / "stat").read_text().rpartition(")")[2].split()[8])
        server = int((self.server / "schedstat").read_text().split()[0]) / 1e6
        return time.process_time() * 1000, server, self.children, faults


def response(problem: Problem, prompt: Prompt, number: int) -> str:
    """A right answer, a wrong one or a hack in turn, unlike any other."""
    hacks = MODES[prompt.mode].example_hacks
    wrong = f"```python\n{problem.wrong_solutions[0]}\n```"
    answers = (f"```python\n{problem.canonical_solution}\n```", wrong)
    text = (*answers, hacks[number // 3 % len(hacks)](problem, prompt.marker) if hacks else wrong)[number % 3]
    return text.replace("```python", f"```python\n# {number}", 1)


def measure(
    grader: Grader, clocks: Clocks, problems: tuple[Problem, ...], modes: list[str], grades: int
) -> dict[str, Cost]:
    """Grade `grades` responses of each mode, in chunks that alternate."""
    costs = {mode: Cost() for mode in modes}
    for start in range(0, grades, CHUNK):
        for mode in modes:
            work = []
            for number in range(start, min(start + CHUNK, grades)):
                problem = problems[number // 3 % len(problems)]
                prompt = render(problem, mode, "train", 0)
                work.append((prompt, response(problem, prompt, number)))
            cost, before = costs[mode], clocks.read()
            for prompt, text in work:
                began = time.perf_counter()
                verdict = grader.grade(prompt, text)
                cost.wall.append((time.perf_counter() - began) * 1000)
                if verdict.infra:
                    raise SystemExit(f"a grade of mode {mode} failed: {verdict}")
            parent, server, children, faults = (
                (after - was) / len(work) for after, was in zip(clocks.read(), before, strict=True)
            )
            cost.chunks.append((parent, server, children, faults))
    return costs


def by_mode(modes: list[str], grades: int) -> str:
    """The table of costs by mode."""
    problems = micro_problems("validation")
    with Grader(problems, workers=1, cpu_limits={problem.id: 2.0 for problem in problems}) as grader:
        for problem in problems:
            grader._tests_of(problem.id)
        clocks = Clocks(grader._runners[0].start().process.pid)
        measure(grader, clocks, problems[:8], modes, 30)
        grader._cache.clear()
        costs = measure(grader, clocks, problems, modes, grades)
    head = "".join(f"{name:>11}" for name in ("parent ms", "server ms", "child ms", "CPU ms", "per CPU-s"))
    table = [cost.row(mode) for mode, cost in costs.items()]
    return "\n".join([f"{'mode':<14}{'grades':>7}{head}{'faults':>8}{'median ms':>11}", *table])


@contextmanager
def one_worker(problems: list[Problem]) -> Generator[tuple[Grader, Callable[[], float]]]:
    """A grader with one worker and the clock that counts its CPU seconds, this process's own among them."""
    with Grader(problems, workers=1) as grader:
        grader.measure_limits()
        clocks = Clocks(grader._runners[0].start().process.pid)
        yield grader, lambda: sum(clocks.read()[:3]) / 1e3


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grades", type=int, default=800, help="grades of each mode")
    parser.add_argument("--modes", nargs="+", default=list(STANDARD), choices=list(MODES))
    parser.add_argument(
        "--against", type=Path, help="problem file: compare with other graders on its canonical solutions"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --against (the field's grader takes one)")
    parser.add_argument("--no-field", action="store_true", help="leave the field's grader out of --against")
    parser.add_argument("--rollouts", type=Path, help="compare on these stored rollouts as well")
    parser.add_argument("--rollout-problems", type=Path, help="their problem file")
    parser.add_argument("--limit", type=int, help="take only so many rollouts, evenly spread")
    options = parser.parse_args()
    if options.against is None and options.rollouts is None:
        print(by_mode(options.modes, options.grades))
        return
    if options.against is not None:
        with one_worker(list(load_problems(options.against))) as (grader, clock):
            print(canonical(grader, clock, options.rounds, field_too=not options.no_field))
    if options.rollouts is not None:
        problems = {problem.id: problem for problem in load_problems(options.rollout_problems)}
        rows = [row for _, row in read_rows(options.rollouts) if str(row["problem_id"]) in problems]
        rows = rows[:: max(1, len(rows) // options.limit)] if options.limit else rows
        with one_worker(problems_of(rows, problems)) as (grader, clock):
            print(rollouts(grader, clock, rows))


if __name__ == "__main__":
    main()
