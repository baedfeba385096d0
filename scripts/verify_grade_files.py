"""`vgrout grade` and the grader's batches: nothing graded is lost, nothing known is graded again, nothing piles up.

Invariants:
- what was graded before Ctrl-C or SIGKILL is kept, the same command grades only the rest, and the file is the same
- a verdict is known again by program, problem, mode, markers, limits, layers and version, and by nothing less
- a cache that is something else or cannot be written, or a file that is not there, is a one-line error; trouble of the
  machine is not kept; the summary of one response has numbers in it
- a stream takes items only a window ahead of the verdict that is asked for, in order, also from coroutines; fewer where
  responses are long
- a coroutine that is cancelled leaves the grade to those who share it, and a closed grader says so
- the example of the page on the grader runs and prints what it says
"""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

from _attack_world import TOTAL
from _gate import Gate, refusal
from _grading import LIMIT, answer, by_and_by, fence, prompt
from verify_grader import problem_row
from vgrout.env import batches as batches_module
from vgrout.env import runner as runner_module
from vgrout.env import store as store_module
from vgrout.env.grade_files import PARTIAL, grade_files
from vgrout.env.grader import Grader
from vgrout.env.store import VerdictStore
from vgrout.env.worker import Server
from vgrout.types import Prompt

gate = Gate(__doc__)
ROWS = 60
SLOW = "import time\ntime.sleep(0.1)\nreturn sum(n * n + 7 for n in nums)"


def files(folder: Path, rows: int = ROWS) -> list[str]:
    """A problem file and a response file of slow right and wrong answers; the command that grades them."""
    (folder / "p.jsonl").write_text(json.dumps(problem_row(TOTAL)))
    responses = [answer(f"{SLOW} + {k % 2} + {k} * 0") for k in range(rows)]
    lines = [{"id": k, "problem_id": "total", "mode": "gt_only", "response": r} for k, r in enumerate(responses)]
    (folder / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = []
    for option, name in (("problems", "p"), ("responses", "r"), ("out", "v")):
        paths += [f"--{option}", str(folder / f"{name}.jsonl")]
    return [sys.executable, "-m", "vgrout.cli", "grade", *paths, "--workers", "2"]


def kept(folder: Path) -> int:
    """Verdicts in the partial file, read as a stranger would."""
    path = folder / f"v.jsonl{PARTIAL}"
    if not path.exists():
        return 0
    # Not opened read-only: what a killed writer left half done is rolled back first.
    with sqlite3.connect(path, timeout=30) as file:
        if not file.execute("SELECT 1 FROM sqlite_master WHERE name = 'verdicts'").fetchone():
            return 0  # its tables are not made yet
        return file.execute("SELECT COUNT(*) FROM verdicts").fetchone()[0]


@gate.invariant("what was graded before Ctrl-C or SIGKILL is kept, and the same command grades only the rest")
def _():
    said = []
    for number in (signal.SIGINT, signal.SIGKILL):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            command = files(folder)
            # A shell starts its background jobs with SIGINT ignored, and they hand that on.
            running = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                text=True,
            )
            assert by_and_by(lambda folder=folder: kept(folder) >= 5, 60), "nothing was kept within a minute"
            running.send_signal(number)
            _, error = running.communicate(timeout=60)
            before = kept(folder)
            assert 5 <= before < ROWS and not (folder / "v.jsonl").exists(), before
            if number == signal.SIGINT:
                assert running.returncode == 130 and f"{before} verdicts are kept" in error, (error, before)
            again = subprocess.run(command, capture_output=True, text=True)
            assert again.returncode == 0 and f"{before} from the cache" in again.stdout, (again, before)
            rows = [json.loads(line) for line in (folder / "v.jsonl").read_text().splitlines()]
            assert [row["id"] for row in rows] == list(range(ROWS))
            assert [row["gt_correct"] for row in rows] == [k % 2 == 0 for k in range(ROWS)]
            left = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}
            assert left == {"p.jsonl", "r.jsonl", "v.jsonl"}, left
            said.append(f"{signal.Signals(number).name} after {before} of {ROWS}")
    return ", ".join(said)


def runs_of(store: VerdictStore, rows: list[tuple[Prompt, str]], cpu_limits: Mapping[str, float] = LIMIT) -> int:
    """How many children a new grader with this store runs for these rows."""
    plain, count = Server.run, []

    def counted(*args, **kwargs):
        count.append(1)
        return plain(*args, **kwargs)

    with mock.patch.object(Server, "run", counted):
        with Grader([TOTAL], workers=2, store=store, cpu_limits=cpu_limits) as grader:
            count.clear()
            assert all(verdict.gt_correct for verdict in grader.stream(rows))
        return len(count)


@gate.invariant("a verdict is known again by program, problem, mode, markers, limits, layers and version")
def _():
    text = fence(TOTAL.canonical_solution)
    with tempfile.TemporaryDirectory() as folder, VerdictStore(Path(folder) / "cache") as store:
        assert runs_of(store, [(prompt(), text)]) == 1 and len(store) == 1
        assert runs_of(store, [(prompt(), text), (prompt(), f"In other words:\n\n{text}")]) == 0
        other = {
            "program": lambda: runs_of(store, [(prompt(), fence(f"{TOTAL.canonical_solution}# x"))]),
            "mode": lambda: runs_of(store, [(prompt("run_tests"), text)]) - 1,
            "markers": lambda: runs_of(store, [(replace(prompt("run_tests"), markers="eval"), text)]) - 1,
            "limits": lambda: runs_of(store, [(prompt(), text)], cpu_limits={"total": 8.0}),
        }
        assert {name: act() for name, act in other.items()} == dict.fromkeys(other, 1)
        changed = replace(TOTAL, asserts=TOTAL.asserts[:1])
        with Grader([changed], workers=1, store=store, cpu_limits=LIMIT) as grader:
            known = len(store)
            assert grader.grade(prompt(), text).gt_correct and len(store) == known + 1 and not grader.cache_hits
        with mock.patch.object(store_module, "GRADER_VERSION", "another"):
            assert runs_of(store, [(prompt(), text)]) == 1
        with Grader([TOTAL], workers=1, store=store) as grader:
            assert grader.measure_limits() == LIMIT and store.cpu_limit(TOTAL) == 2.0
        assert runs_of(store, [(prompt(), text)], cpu_limits={}) == 0, "a limit that is known was measured again"
        with Grader([TOTAL], workers=1, store=store) as grader:
            graded, again = (grader.grade(prompt(), t) for t in (text, text + "\n"))
            assert graded == again and graded.gt_correct and grader.cache_hits == 2, grader.cache_hits
    return f"{len(other) + 2} things tell contents apart"


@gate.invariant("a cache that is none is refused in one line, and trouble of the machine is not kept")
def _():
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "text").write_text("no database, but a text of some length " * 40)
        assert "cache" in refusal(lambda: VerdictStore(folder / "text"))
        assert "cache" in refusal(lambda: VerdictStore(folder / "none" / "cache"))
        with sqlite3.connect(folder / "other") as other:
            other.execute("CREATE TABLE verdicts (x)")
        with VerdictStore(folder / "other") as store:
            assert "remove this file" in refusal(lambda: store.get(b""))
        files(folder, 1)
        problems, responses, out = (folder / f"{name}.jsonl" for name in ("p", "r", "v"))
        assert "--cache" in refusal(lambda: grade_files(problems, responses, out, cache=folder / "." / "v.jsonl"))
        assert "response file" in refusal(lambda: grade_files(problems, folder / "none.jsonl", out))
        assert "; 0 exploited;" in str(grade_files(problems, responses, out, workers=1))
        files(folder, 4)
        stack.enter_context(mock.patch.object(runner_module, "RETRY_S", 0.001))
        plain, calls = Server.run, []

        def failing(*args, **kwargs):
            calls.append(1)
            if len(calls) > 4:  # the self-test and the canonical solution's run have come before
                raise runner_module.InfraError("gone")
            return plain(*args, **kwargs)

        def grade():
            return grade_files(folder / "p.jsonl", folder / "r.jsonl", folder / "v.jsonl", workers=1)

        with mock.patch("vgrout.env.selftest.require_containment"), mock.patch.object(Server, "run", failing):
            assert "take" in refusal(grade) and kept(folder) == 3, kept(folder)
        calls.clear()
        summary = grade()
        assert (summary.known, summary.infra, summary.correct) == (3, 0, 2) and kept(folder) == 0, summary
    return "1 of 4 could not be graded and was graded by the next command"


@gate.invariant("a stream takes items only a window ahead, in order, also from coroutines")
def _():
    taken = [0]

    def items(count: int) -> Iterator[tuple[Prompt, str]]:
        for k in range(count):
            taken[0] += 1
            yield prompt(), answer(f"return sum(n * n + 7 for n in nums) + {k % 3} + {k} * 0")

    with Grader([TOTAL], workers=2, cpu_limits=LIMIT) as grader:
        for k, verdict in enumerate(grader.stream(items(60), window=8)):
            assert verdict.gt_correct == (k % 3 == 0) and taken[0] <= k + 8, (k, taken)
        assert k == 59
        taken[0] = 0

        async def drive() -> int:
            k = 0
            async for verdict in grader.stream_async(items(60), window=8):
                assert verdict.gt_correct == (k % 3 == 0) and taken[0] <= k + 8, (k, taken)
                k += 1
            one, other = await asyncio.gather(*(grader.grade_async(*item) for item in items(2)))
            assert one.gt_correct and not other.gt_correct
            return k

        hits = grader.cache_hits
        assert asyncio.run(drive()) == 60 and grader.cache_hits == hits + 62
        taken[0] = 0
        with mock.patch.object(batches_module, "WINDOW_CHARACTERS", 3 * len(answer(""))):
            for k, _ in enumerate(grader.stream(items(60))):
                assert taken[0] <= k + 4, (k, taken)
            taken[0] = 0
            assert asyncio.run(drive()) == 60 and taken[0] == 62
    return "60 items, at most 8 ahead, at most 4 long ones"


@gate.invariant("a cancelled coroutine leaves the grade to those who share it, and a closed grader says so")
def _():
    async def cancelled(grader: Grader) -> None:
        text = answer(f"{SLOW} + 0")
        first = asyncio.ensure_future(grader.grade_async(prompt(), text))
        second = asyncio.ensure_future(grader.grade_async(prompt(), text))
        ticks = 0
        while not grader._cache and ticks < 1000:
            await asyncio.sleep(0.001)
            ticks += 1
        first.cancel()
        assert (await second).gt_correct and first.cancelled()

    async def closed(grader: Grader) -> None:
        waiting = [asyncio.ensure_future(grader.grade_async(prompt(), answer(f"{SLOW} + {k}"))) for k in range(9)]
        await asyncio.sleep(0.02)
        grader.close()
        message = ""
        for task in waiting:
            try:
                verdict = await task
                assert verdict.infra or not verdict.gt_correct or verdict.reason == ""
            except Exception as error:  # noqa: BLE001 - what it says is looked at
                message = str(error)
        assert "closed" in message, message

    with Grader([TOTAL], workers=1, cpu_limits=LIMIT) as grader:
        asyncio.run(cancelled(grader))
        asyncio.run(closed(grader))
    assert "closed" in refusal(lambda: grader.grade(prompt(), "x"))
    return "1 of 2 who shared a grade; 9 grades on closing"


@gate.invariant("the example of the page on the grader runs and prints what it says")
def _():
    page = (Path(__file__).parents[1] / "docs" / "grader.md").read_text()
    example = page.partition("```python\n")[2].partition("\n```\n")[0]
    assert "grader.stream" in example, example
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "problems.jsonl").write_text(json.dumps(problem_row(TOTAL)))
        (Path(folder) / "answers.txt").write_text("no code\nneither\n")
        done = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0.5 False False Incorrect", "no_code", "no_code"], done.stdout
    return f"{len(example.splitlines())} lines"


if __name__ == "__main__":
    gate.main()
