"""Load and pauses of the machine change no verdict.

Invariants:
- time that ran out while the machine stood still is given again, with the same limit and not for ever
- a process that is stopped in the middle of a run knows how long, and the run is made again
- right, wrong and endless programs have the same verdicts with every core oversubscribed four times
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from unittest import mock

from _attack_world import TOTAL
from _gate import Gate
from _grading import SHORT, answer, fence, opened, prompt
from study_load import busy, flips, not_as_due, one_round, programs
from vgrout.cores import usable_cores
from vgrout.env.grader import Grader
from vgrout.env.problems import builtin_problems
from vgrout.env.runner import LATE_SHARE, TIMED_RUNS
from vgrout.env.watch import Exit
from vgrout.env.worker import Server

gate = Gate(__doc__)
ENDLESS = answer("while True: pass")
OUT_OF_TIME = {"cpu": Exit(signal.SIGKILL, 1.0, 1.2, "", b""), "wall": Exit(signal.SIGKILL, 0.1, 40.0, "wall", b"")}


def runs(first: list[Exit], mode: str = "gt_only") -> tuple[int, str]:
    """(runs made, reason) of a right program whose first runs end like this, having said nothing."""
    plain, made = Server.run, []

    def run(self, request, limits, on_line, **kwargs):
        made.append(1)
        if len(made) <= len(first):
            on_line(b'["ready"]')
            on_line(b'["compiled"]')
            return first[len(made) - 1]
        return plain(self, request, limits, on_line, **kwargs)

    with opened() as grader, mock.patch.object(Server, "run", run):
        verdict = grader.grade(prompt(mode), fence(TOTAL.canonical_solution))
    assert not verdict.infra, verdict
    return len(made), verdict.reason


@gate.invariant("time that ran out while the machine stood still is given again, not for ever")
def _():
    for reason, end in OUT_OF_TIME.items():
        late = replace(end, late_s=LATE_SHARE * 1.0 + 0.01)
        assert runs([late]) == (2, "") and runs([late] * 2) == (3, ""), reason
        assert runs([late] * 9) == (TIMED_RUNS, reason), reason
        assert runs([end]) == (1, reason), "a verdict that nothing speaks against was not accepted"
        assert runs([], "sentinel") == (2, "")
    return f"2 reasons, at most {TIMED_RUNS} runs"


@gate.invariant("a process that is stopped in the middle of a run knows how long, and the run is made again")
def _():
    plain, ends = Server.run, []

    def run(self, *args, **kwargs):
        ends.append(plain(self, *args, **kwargs))
        if len(ends) == 1:  # only the first run is disturbed
            stopper.wait()
        return ends[-1]

    stop = f"sleep 0.3; kill -STOP {os.getpid()}; sleep 1.2; kill -CONT {os.getpid()}"
    with opened(limits=replace(SHORT, wall_s=30.0)) as grader, mock.patch.object(Server, "run", run):
        began = time.monotonic()
        stopper = subprocess.Popen(["sh", "-c", stop])
        verdict = grader.grade(prompt(), ENDLESS)
        seconds = time.monotonic() - began
    assert verdict.reason == "cpu" and len(ends) >= 2, (verdict, ends)
    assert ends[0].late_s > 0.9, ends[0]
    return f"late by {ends[0].late_s:.1f} s and {ends[-1].late_s:.2f} s; {len(ends)} runs in {seconds:.1f} s"


@gate.invariant(
    "right, wrong and endless programs have the same verdicts with every core oversubscribed four times", slow=True
)
def _():
    problems = list(builtin_problems())
    work = programs(problems)
    with Grader(problems) as grader:
        grader.measure_limits()
        first = one_round(grader, work)
        assert not not_as_due(first, work), not_as_due(first, work)
        with busy(3 * usable_cores()):
            for _ in range(2):
                later = one_round(grader, work)
                assert not flips(first, later, work), flips(first, later, work)
    flipped = [replace(first[0], gt_correct=False), *first[1:]]
    assert len(flips(first, flipped, work)) == 1 and len(not_as_due(flipped, work)) == 1
    waits = sorted(v.wall_s / max(v.cpu_s, 1e-3) for v in later)
    return f"{len(work)} programs twice, median wall/CPU {waits[len(waits) // 2]:.1f}"


if __name__ == "__main__":
    gate.main()
