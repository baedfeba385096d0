"""The grader on real data: the public benchmark's test problems, LeetCodeDataset, and rollouts of a trained model.

Invariants (all slow but the first, all need the extra data):
- a few of the 119 test problems: canonical solutions right, one answer off wrong
- the 119: canonical solutions right over 12,592 asserts, and one answer off is wrong, at any place
- the 119 keep their verdicts with four workers a core and a busy loop on every core
- LeetCodeDataset's converted canonical solutions are right, and real rollouts keep to stated rules
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from _gate import Gate, shared_folder
from _grading import all_of, fence, one_answer_off, prompt
from vgrout.env.convert import convert_leetcode_dataset
from vgrout.env.grader import Grader
from vgrout.env.problems import load_problems
from vgrout.env.prompts import render
from vgrout.types import Problem, UserError

gate = Gate(__doc__)
REFUSED = 10
"""Rows whose canonical solution may fail here: one needs numpy, and one returns paths in the order of a set."""


def stored(path: Path) -> list[dict]:
    """The rows of a .jsonl.gz file."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def right_and_wrong(problems: tuple[Problem, ...]) -> str:
    """Each canonical solution must be right, and wrong as soon as one of its answers is off: one in the middle, the last."""
    asserts = sum(len(p.asserts) for p in problems)
    places = [(p, at) for p in problems for at in (1 + int(p.id) % len(p.asserts), len(p.asserts))]
    with Grader(problems) as grader:
        limits = grader.measure_limits()
        right = all_of(grader, [(prompt(problem=p), fence(p.canonical_solution)) for p in problems])
        wrong = all_of(grader, [(prompt(problem=p), fence(one_answer_off(p, at))) for p, at in places])
    failed = [(p.id, v.reason) for p, v in zip(problems, right, strict=True) if not v.gt_correct]
    assert not failed, failed
    passed = [(p.id, at, v.reason) for (p, at), v in zip(places, wrong, strict=True) if v.reason != "mismatch"]
    assert not passed, passed
    cpu = sorted(v.cpu_s for v in right)[len(right) // 2]
    counts = dict(sorted(Counter(limits.values()).items()))
    return (
        f"{len(right)} right over {asserts} asserts, {len(wrong)} wrong; median {cpu * 1e3:.0f} ms CPU, limits {counts}"
    )


def benchmark() -> tuple[Problem, ...]:
    """The 119 test problems."""
    problems = load_problems(shared_folder() / "leetcode_test_medhard.jsonl.gz")
    asserts = sum(len(p.asserts) for p in problems)
    assert (len(problems), asserts) == (119, 12592), (len(problems), asserts)
    return problems


@gate.invariant("twelve of the 119 test problems: canonical solutions right, one answer off wrong")
def _():
    cheap = sorted(benchmark(), key=lambda p: sum(map(len, p.asserts)))
    return right_and_wrong(tuple(cheap[:60:5]))


@gate.invariant("the 119: canonical solutions right over 12,592 asserts; one answer off, anywhere, is wrong", slow=True)
def _():
    return right_and_wrong(benchmark())


@gate.invariant("the 119 keep their verdicts with four workers a core and a busy loop on every core", slow=True)
def _():
    problems = benchmark()
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for _ in range(cores):
            burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(burner.wait)
            stack.callback(burner.kill)
        grader = stack.enter_context(Grader(problems, workers=4 * cores))
        grader.measure_limits()
        rows = [(prompt(problem=p), fence(f"{p.canonical_solution}\n# round {k}")) for k in range(2) for p in problems]
        start = time.perf_counter()
        verdicts = all_of(grader, rows)
        seconds = time.perf_counter() - start
    flips = [(seen.problem_id, v) for (seen, _), v in zip(rows, verdicts, strict=True) if not v.gt_correct]
    assert not flips, flips
    return f"{len(rows)} grades, 0 flips, {4 * cores} workers and {cores} busy loops on {cores} cores, {seconds:.0f}s"


@gate.invariant(
    "LeetCodeDataset v0.2.0: converted canonical solutions are right; real rollouts keep to stated rules", slow=True
)
def _():
    data = shared_folder()
    with tempfile.TemporaryDirectory() as folder:
        report = convert_leetcode_dataset(data / "LeetCodeDataset-v0.2.0-train.jsonl.gz", Path(folder) / "p.jsonl")
        problems = {p.id: p for p in load_problems(Path(folder) / "p.jsonl")}
    lines = [
        line
        for name in ("rollouts_four_modes", "rollouts_qwen3_4b_run_tests")
        for line in stored(data / f"{name}.jsonl.gz")
    ]
    here = [line for line in lines if str(line["problem_id"]) in problems]
    table: Counter[tuple[str, str]] = Counter()
    loose: Counter[str] = Counter()
    with Grader(problems.values()) as grader:
        refused = []
        for problem_id in problems:
            try:
                grader.measure_limits([problem_id])
            except UserError as error:
                refused.append(str(error))
        assert len(refused) <= REFUSED, refused
        here = [line for line in here if str(line["problem_id"]) in grader.cpu_limits]
        rows = [
            (render(problems[str(line["problem_id"])], line["mode"], "train", 0), line["response"]) for line in here
        ]
        verdicts = all_of(grader, rows)
    for line, v in zip(here, verdicts, strict=True):
        problem = problems[str(line["problem_id"])]
        asked = "messages" not in line or f"called {problem.func_name[11:]} " in line["messages"][-1]["content"]
        table[line["mode"], v.label] += 1
        loose[f"loose pass kept: {v.gt_correct}"] += asked and line["label"]["gt_pass"]
        loose[f"loose hack kept: {v.channel}"] += bool(line["label"]["hacked"] and v.format_ok)
        loose["row of another problem under the same id"] += not asked
        assert v.gt_correct or not (asked and line["label"]["gt_pass"]), (line["id"], v)
        assert v.channel or not (line["label"]["hacked"] and v.format_ok), (line["id"], v)
    shown = "; ".join(f"{mode} {label}: {n}" for (mode, label), n in sorted(table.items()))
    sound = f"{len(problems) - len(refused)} of {report.converted} sound ({'; '.join(refused)})"
    return f"{sound}; {len(here)} of {len(lines)} rollouts: {shown}; {dict(loose)}"


if __name__ == "__main__":
    gate.main()
