"""The grader: right programs are right, wrong ones wrong, and no trouble of the machine becomes a verdict.

Invariants:
- every built-in canonical solution is correct and each wrong solution wrong
- CPU limits are measured once, rounded up, and a failing canonical solution is named
- the same content is graded once; verdicts come back in the order asked for
- a killed server, a killed child and a full disk are tried again, then masked, never a wrong verdict
- a verdict does not depend on the server that gave it (set order, random draws)
- a trivial program costs a few milliseconds of CPU, and its child copies few pages of the fork-server's memory
- what the fork-server does before it forks is invisible to a program, and so is what was graded before
- a verdict does not depend on whether the run outlasted the moment after which its process is handed over
- files of responses: verdict rows in order, errors before grading by file, line and field, nothing half-written
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from unittest import mock

from _attack_world import TOTAL, children_of
from _gate import Gate
from _grading import LIMIT, all_of, answer, expect_error, fence, one_answer_off, problem_row, prompt, servers_of
from vgrout.env import runner as runner_module
from vgrout.env.grade_files import grade_files
from vgrout.env.grader import CPU_LIMITS, Grader
from vgrout.env.problems import builtin_problems
from vgrout.env.prompts import render
from vgrout.env.worker import Server
from vgrout.types import Verdict

gate = Gate(__doc__)


@gate.invariant("every built-in canonical solution is correct and each wrong solution wrong")
def _():
    problems = builtin_problems()
    rows = [(p, p.canonical_solution, True) for p in problems]
    rows += [(p, program, False) for p in problems for program in p.wrong_solutions]
    rows += [(p, one_answer_off(p, at), False) for p in problems for at in (1, len(p.asserts))]
    with Grader(problems) as grader:
        verdicts = all_of(grader, [(prompt(problem=p), fence(program)) for p, program, _ in rows])
    for (problem, program, right), v in zip(rows, verdicts, strict=True):
        assert v.gt_correct == right and v.compiles and v.reward == (3.5 if right else 0.5), (problem.id, program, v)
        assert v.label == ("Correct" if right else "Incorrect"), (problem.id, v)
    return f"{len(problems)} right, {len(rows) - len(problems)} wrong programs, some by one answer"


# ---- limits, cache, trouble ----------------------------------------------------------------------------------------


@gate.invariant(
    "CPU limits are measured once, rounded up to 2, 4, 8, 16 or 20 s, and failing canonical solutions are named"
)
def _():
    loop = "class Solution:\n    def total(self, nums):\n        import time\n        end = time.process_time() + 0.06\n" \
           "        while time.process_time() < end: pass\n        return sum(n * n + 7 for n in nums)"  # fmt: skip
    heavy, broken = (
        replace(TOTAL, id="heavy", canonical_solution=loop),
        replace(TOTAL, id="broken", canonical_solution="x"),
    )
    with Grader([TOTAL, heavy, broken], workers=2) as grader:
        limits = grader.measure_limits(["total", "heavy"])
        assert limits == {"total": 2.0, "heavy": 4.0} and set(limits.values()) <= set(CPU_LIMITS), limits
        message = expect_error("problem broken", lambda: grader.measure_limits())
        expect_error("problem broken", lambda: grader.grade(prompt(problem=broken), fence("x = 1")))
    with Grader([heavy], workers=1, cpu_limits={"heavy": 16.0}) as grader:
        assert grader.measure_limits() == {"heavy": 16.0}, "a stored limit was measured again"
    return f"{limits}; {message[:60]}..."


@gate.invariant("the same content is graded once; verdicts come back in the order asked for; keys are used once")
def _():
    programs = [answer(f"return {k}") if k % 3 else fence(TOTAL.canonical_solution + f"#{k}") for k in range(30)]
    with Grader([TOTAL], workers=4, cpu_limits=LIMIT) as grader:
        for k, text in enumerate(programs):
            grader.submit(f"row {k}", prompt(), text)
        back = grader.collect([f"row {k}" for k in reversed(range(30))])
        assert [v.gt_correct for v in back] == [k % 3 == 0 for k in reversed(range(30))]
        assert grader.cache_hits == 0
        again = grader.grade_many([(prompt(), text) for text in programs])
        assert again == back[::-1] and grader.cache_hits == 30, grader.cache_hits
        grader.grade(render(TOTAL, "run_tests", "eval", 0), programs[0])
        grader.grade(render(TOTAL, "run_tests", "train", 0), programs[0])
        assert grader.cache_hits == 30, "another mode or family is other content"
        grader.submit("twice", prompt(), "x")
        expect_error("already submitted", lambda: grader.submit("twice", prompt(), "x"))
        expect_error("nothing was submitted", lambda: grader.collect(["never"]))
        expect_error("not among", lambda: grader.submit("k", replace(prompt(), problem_id="gone"), "x"))
        expect_error("expected one of", lambda: grader.submit("k", replace(prompt(), mode="gone"), "x"))
    expect_error("closed", lambda: grader.grade(prompt(), "x"))
    return "30 graded, 30 hits, 2 misses by mode and family"


@gate.invariant("a killed server, a killed child, a stopped machine and a full disk are tried again, then masked")
def _():
    slow = "import time\nif nums == [3, 4]: time.sleep(0.4)\nreturn sum(n * n + 7 for n in nums)"
    with Grader([TOTAL], workers=1, cpu_limits=LIMIT) as grader, mock.patch.object(runner_module, "RETRY_S", 0.01):
        old = servers_of(grader)

        def during(act) -> Verdict:
            timer = threading.Timer(0.2, act)
            timer.start()
            verdict = grader.grade(prompt(), answer(f"{slow} + {time.monotonic_ns()} * 0"))
            timer.join()
            return verdict

        killed_server = during(lambda: os.kill(old[0], signal.SIGKILL))
        assert killed_server.gt_correct and not killed_server.infra, killed_server
        (fresh,) = servers_of(grader)
        assert fresh != old[0]
        killed_child = during(lambda: [os.kill(pid, signal.SIGKILL) for pid in children_of(fresh)])
        assert killed_child.gt_correct and not killed_child.infra, killed_child
        text = fence(TOTAL.canonical_solution)
        with mock.patch.object(runner_module, "infra_trouble", lambda *args: "no space"):
            masked = grader.grade(prompt(), answer("open('f', 'w')\nreturn 0"))
        with mock.patch.object(Server, "run", side_effect=runner_module.InfraError("gone")):
            gone = grader.grade(prompt(), text)
        for v in (masked, gone):
            assert v.infra and v.reason == "infra" and not v.gt_correct and not v.channel, v
        after = grader.grade(prompt(), text)
        assert after.gt_correct and not after.infra, "machine trouble was remembered as a verdict"
    return "server and child killed: right verdicts; trouble that stays: masked, and not cached"


@gate.invariant("a verdict does not depend on the server that gave it: set order and random draws are fixed")
def _():
    text = "import random\nwords = list({str(n) for n in range(50)} | {'a', 'b'})\nreturn [words, random.random(), hash('x')]"
    probe = replace(TOTAL, asserts=("assert Solution().total(nums = [1]) == 0",))
    seen: list[bytes] = []
    plain_run = Server.run

    def recorded(self, request, limits, on_line, **kwargs):
        return plain_run(self, request, limits, lambda line: bool(seen.append(line) or on_line(line)), **kwargs)

    with mock.patch.object(Server, "run", recorded):
        for _ in range(3):
            with Grader([probe], workers=1, cpu_limits=LIMIT) as grader:
                grader.grade(prompt(problem=probe), answer(text))
    values = [line for line in seen if b"0." in line]
    assert len(values) == 3 and len(set(values)) == 1, values
    return f"3 servers, one answer ({len(values[0])} bytes)"


@gate.invariant("a trivial program costs a few milliseconds of CPU in its child, which copies few pages")
def _():
    with Grader([TOTAL], workers=1, cpu_limits=LIMIT) as grader:
        (server,) = servers_of(grader)
        all_of(grader, [(prompt(), fence(f"{TOTAL.canonical_solution}# warm"))])
        before, start, faults = time.process_time(), time.perf_counter(), faults_of_children(server)
        texts = [fence(f"{TOTAL.canonical_solution}# {k}") for k in range(60)]
        verdicts = all_of(grader, [(prompt(), text) for text in texts])
        ours, wall = (time.process_time() - before) / 60, (time.perf_counter() - start) / 60
        each = (faults_of_children(server) - faults) / 60
    child = sorted(v.cpu_s for v in verdicts)[30]
    assert all(v.gt_correct for v in verdicts) and child < 0.1, child
    assert each < 400, f"{each:.0f} page faults"
    return f"median child {child * 1e3:.1f} ms CPU, {each:.0f} page faults; parent {ours * 1e3:.1f} ms, {wall * 1e3:.1f} ms wall"


def faults_of_children(server: int) -> int:
    """Page faults of the fork-server's reaped children so far."""
    return int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[8])


LOOK = """import gc, random, sys
seen = [random.getstate()[1][:3] == LIKE and random.random(), gc.isenabled(), sys.getrecursionlimit()]
seen += [sorted(k for k in globals() if k[:2] != "__"), sorted(m for m in sys.modules if "vgrout" in m)]
seen += [sum(c.__name__ == "Solution" for c in object.__subclasses__()), sys.modules["solution"].__dict__ is globals()]
class Solution:
    def total(self, nums): return seen
"""


@gate.invariant("what the fork-server does before it forks, and what was graded before, is invisible to a program")
def _():
    drawn = random.Random(0)
    look = LOOK.replace("LIKE", str(drawn.getstate()[1][:3]))
    names = ["gc", "math", "random", "seen", "sys"]
    due = [drawn.random(), True, 10_000, names, [], 0, True]
    view = replace(
        TOTAL, id="view", setup_code="import math\n", asserts=(f"assert Solution().total(nums = []) == {due}",)
    )
    other = replace(TOTAL, id="other", setup_code="import bisect\nimport heapq\nleft = 1\n")
    with Grader([view, other], workers=1, cpu_limits={"view": 1.0, "other": 1.0}) as grader:
        for k in range(3):
            verdict = grader.grade(prompt(problem=view), fence(f"{look}# {k}"))
            assert verdict.gt_correct, (k, verdict)
            for mode in ("gt_only", "run_tests"):
                spoil = f"import random, gc, sys\nrandom.seed(7); gc.disable(); sys.setrecursionlimit(99)\nmine = {k}\n"
                spoiled = grader.grade(prompt(mode, problem=other), fence(spoil + TOTAL.canonical_solution))
                assert spoiled.gt_correct, spoiled
    return f"{len(due)} things looked at, before and after other programs"


ENDINGS = {
    "right": "return sum(n * n + 7 for n in nums)", "wrong": "return 0", "raises": "raise ValueError",
    "exits": "import os\nos._exit(0)", "crashes": "import ctypes\nctypes.string_at(0)",
    "closes": "import os\nos.close(3)\nos.close(1)\nreturn 0", "forges": "import os\nos.write(3, b'[\"v\",0]\\n')\nreturn 0",
    "is opaque": "return object()", "prints": "print('all tests passed')\nreturn 0", "floods": "print('x' * 70000)\nreturn 0",
    "writes": "open('result.txt', 'w').write('PASS')\nreturn 0",
}  # fmt: skip


@gate.invariant(
    "a verdict does not depend on whether the run outlasted the moment after which its process is handed over"
)
def _():
    slow = "import time\ntime.sleep(0.02)"
    rows = [(name, mode) for name in ENDINGS for mode in ("gt_only", "run_tests", "stdout_marker", "file_marker")]
    with Grader([TOTAL], workers=2, cpu_limits=LIMIT) as grader:
        short, long = (
            all_of(grader, [(prompt(mode), answer(ENDINGS[name], top)) for name, mode in rows]) for top in ("", slow)
        )
    for row, a, b in zip(rows, short, long, strict=True):
        assert replace(a, wall_s=0.0, cpu_s=0.0) == replace(b, wall_s=0.0, cpu_s=0.0), (row, a, b)
        assert b.wall_s > 0.02, (row, b)
    return f"{len(rows)} runs twice: {sum(v.exploited for v in short)} hacks, {len({v.reason for v in short})} reasons"


# ---- files ---------------------------------------------------------------------------------------------------------


@gate.invariant(
    "files of responses: rows in order, errors before grading by file, line and field, nothing half-written"
)
def _():
    good = {"problem_id": "total", "mode": "run_tests", "response": fence(TOTAL.canonical_solution)}
    rows = [
        good | {"id": f"r{k}", "response": good["response"] + f"\n{k}" if k % 2 else "no", "markers": "eval"}
        for k in range(9)
    ]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        here = Path(folder)
        problems, responses, out = here / "p.jsonl.gz", here / "r.jsonl", here / "v.jsonl"
        problems.write_bytes(gzip.compress(json.dumps(problem_row(TOTAL)).encode()))

        def grade(lines: list[dict], target: Path = out):
            responses.write_text("".join(json.dumps(line) + "\n" for line in lines))
            done: list[int] = []
            return grade_files(problems, responses, target, workers=2, progress=lambda n, _: done.append(n)), done

        summary, done = grade(rows)
        back = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["id"] for row in back] == [row["id"] for row in rows] and done == list(range(1, 10))
        assert [row["gt_correct"] for row in back] == [k % 2 == 1 for k in range(9)], back
        assert all(set(row) == {"id", *(f.name for f in fields(Verdict))} for row in back), back[0].keys()
        assert (summary.responses, summary.correct, summary.exploited, summary.infra) == (9, 4, 0, 0), summary
        grade(rows, here / "v.jsonl.gz")
        assert [
            json.loads(line)["id"] for line in gzip.decompress((here / "v.jsonl.gz").read_bytes()).splitlines()
        ] == [row["id"] for row in rows]
        out.unlink()
        bad = {
            "'mode'": {"mode": "nope"}, "'problem_id'": {"problem_id": 99}, "'markers'": {"markers": "both"},
            "'response'": {"response": None}, "'id'": {"id": "r0"},
        }  # fmt: skip
        stack.enter_context(mock.patch.object(Server, "run", side_effect=AssertionError("graded before the check")))
        plain_init = Grader.__init__
        stack.enter_context(
            mock.patch.object(Grader, "__init__", side_effect=AssertionError("started before the check"))
        )
        for field, change in bad.items():
            message = expect_error(field, lambda change=change: grade([*rows[:2], rows[2] | change]))
            assert f"{responses}:3" in message and not out.exists(), message
        expect_error("no rows", lambda: grade([]))
        expect_error("cannot write", lambda: grade(rows, here / "none" / "v.jsonl"))
        stack.enter_context(mock.patch.object(Grader, "__init__", plain_init))
        assert sorted(path.name for path in here.iterdir()) == ["p.jsonl.gz", "r.jsonl", "v.jsonl.gz"]
    return f"9 rows, {len(bad) + 2} errors"


if __name__ == "__main__":
    gate.main()
