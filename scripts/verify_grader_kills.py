"""Trouble in the middle of a batch: killing a fork-server or a child, or a full disk, loses no verdict and invents none.

Invariants:
- fork-servers and children killed at random instants while a batch runs: every verdict is the one of an undisturbed run
- the same through `vgrout grade`, its fork-servers and children killed from outside
- `vgrout grade` killed itself leaves no process and no half-written file; run again it gives every verdict
- a disk that is full is never a verdict: masked and raised in `vgrout grade`, right once there is room
- verdicts for which the disk has no room (a real ENOSPC): one line says so, and no half-written file is left
- the folder of a grader that was killed is removed by the next one, and no other is
- trouble that lasts is masked, counted, raised by `vgrout grade` with its rows written, and not cached
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

from _attack_world import TOTAL, children_of
from _gate import Gate, refusal
from _grading import LIMIT, answer, by_and_by, fence, problem_row, prompt, servers_of
from _trouble import Killer, filled, grade_command, reaped, small_disk, some_of, verdict_rows
from vgrout.env import runner as runner_module
from vgrout.env.grade_files import grade_files
from vgrout.env.grader import Grader
from vgrout.env.scratch import PREFIX
from vgrout.env.worker import Server
from vgrout.types import Verdict

gate = Gate(__doc__)
MODES = ("gt_only", "run_tests", "stdout_marker", "file_marker")
PAUSE = "import time\nif len(nums) == 3:\n    time.sleep(0.05)\n"
"""Long enough for a kill to meet the child, in one of the calls."""
BODIES = {
    "right": PAUSE + "return sum(n * n + 7 for n in nums)",
    "wrong": PAUSE + "return sum(n * n for n in nums)",
    "raises": PAUSE + "raise ValueError",
    "exits": PAUSE + "import os\nos._exit(0)",
    "prints": PAUSE + "print('all tests passed')\nreturn 0",
    "writes": PAUSE + "open('result.txt', 'w').write('PASS')\nreturn 0",
}


def batch(copies: int) -> list[tuple[str, str, str]]:
    """(id, mode, response) of every body in every mode, so many times; a comment makes each another program."""
    return [
        (f"{name}/{mode}/{k}", mode, answer(f"# {k}\n{body}"))
        for k in range(copies)
        for name, body in BODIES.items()
        for mode in MODES
    ]


def settled(verdict: Verdict) -> Verdict:
    """A verdict without its times."""
    return replace(verdict, wall_s=0.0, cpu_s=0.0)


@gate.invariant("fork-servers and children killed at random in a batch: every verdict is as in an undisturbed run")
def _():
    rows = [(prompt(mode), text) for _, mode, text in batch(4)]
    with Grader([TOTAL], workers=3, cpu_limits=LIMIT) as grader:
        calm = grader.grade_many(rows)
    assert not any(v.infra for v in calm)
    # Many attempts, so that kills that come in a row do not exhaust them: what is tried again must come out the same.
    with (
        mock.patch.object(runner_module, "ATTEMPTS", 40),
        mock.patch.object(runner_module, "RETRY_S", 0.0),
        Grader([TOTAL], workers=3, cpu_limits=LIMIT) as grader,
        Killer(some_of(lambda: children_of(os.getpid()), 1), 2, 0.4) as killer,
    ):
        stormy = grader.grade_many(rows)
    assert killer.kills >= 3, "nothing was killed"
    wrong = [(a, b) for a, b in zip(calm, stormy, strict=True) if settled(a) != settled(b)]
    assert not wrong, wrong[:3]
    return f"{killer.kills} kills in {len(rows)} grades, {sum(v.gt_correct for v in stormy)} right, as before"


# ---- through the command -------------------------------------------------------------------------------------------


@gate.invariant(
    "the same through `vgrout grade`: no verdict lost, none invented; killed itself it leaves nothing behind", slow=True
)
def _():
    assert ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0) == 0, "PR_SET_CHILD_SUBREAPER"
    rows = batch(4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with grade_command(folder, rows) as calm:
            _, said = calm.communicate(timeout=300)
        assert calm.returncode == 0, said
        due = verdict_rows(folder)
        (folder / "v.jsonl").unlink()
        with (
            grade_command(folder, rows) as process,
            Killer(some_of(lambda: children_of(process.pid), 3), 4, 1.0) as killer,
        ):
            _, said = process.communicate(timeout=300)
        found = verdict_rows(folder)
        masked = [i for i, row in found.items() if row["infra"]]
        assert process.returncode == (2 if masked else 0), (process.returncode, said)
        assert [*found] == [*due], "a verdict was lost"
        wrong = [i for i in due if found[i] != due[i] and i not in masked]
        assert not wrong and killer.kills >= 1, (wrong[:3], killer.kills)
        assert all(not found[i]["gt_correct"] and not found[i]["channel"] for i in masked)
        for file in folder.glob("v.jsonl*"):
            file.unlink()
        ended, again = killed_and_again(folder, rows, due)
    return (
        f"{len(rows)} rows, {killer.kills} kills, {len(masked)} masked; killed itself: {ended} processes ended, {again}"
    )


def killed_and_again(folder: Path, rows: list[tuple[str, str, str]], due: dict[str, dict]) -> tuple[int, str]:
    """Kill the command in the middle, then run it again."""
    own = set(children_of(os.getpid()))
    with grade_command(folder, rows) as process:
        assert by_and_by(lambda: any(children_of(pid) for pid in children_of(process.pid)), 120), "no child was running"
        below = [pid for server in children_of(process.pid) for pid in (server, *children_of(server))]
        process.kill()
    left = lambda: {pid for pid in set(children_of(os.getpid())) - own if pid != process.pid and reaped(pid)}  # noqa: E731
    assert by_and_by(lambda: not left()), f"processes outlived the killed command: {left()}"
    assert not (folder / "v.jsonl").exists(), "a verdict file that is not whole"
    with grade_command(folder, rows) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert verdict_rows(folder) == due
    return len(below), "and the next run gave every verdict"


# ---- a full disk ---------------------------------------------------------------------------------------------------


WRITES = answer("with open('big.bin', 'wb') as f:\n    f.write(bytes(500000))\nreturn sum(n * n + 7 for n in nums)")


@gate.invariant(
    "verdicts for which the disk has no room: one line says so, no half-written file, and all are there with room"
)
def _():
    with small_disk(1024) as disk, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "p.jsonl").write_text(json.dumps(problem_row(TOTAL)))
        # Wrong fast and all different: thousands of verdicts without a run each.
        rows = ({"id": k, "problem_id": "total", "mode": "gt_only", "response": "no code"} for k in range(4000))
        (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = refusal(lambda: grade_files(folder / "p.jsonl", folder / "r.jsonl", disk / "v.jsonl", workers=1))
        assert "No space left" in said and str(disk / "v.jsonl") in said, said
        assert not (disk / "v.jsonl").exists() and not [*disk.glob(".v.jsonl*")], [*disk.iterdir()]
        summary = grade_files(folder / "p.jsonl", folder / "r.jsonl", folder / "v.jsonl", workers=1)
        assert summary.responses == len(verdict_rows(folder)) == 4000
    return said[:70] + "..."


def named(name: object) -> str:
    """The program that writes, under a comment that makes it another one."""
    return WRITES.replace("```python", f"```python\n# {name}", 1)


@gate.invariant(
    "a disk that fills up in a batch, on a real small file system, masks and never judges; with room it is right"
)
def _():
    with small_disk(8192) as disk, mock.patch.dict(os.environ, {"TMPDIR": str(disk)}):
        tempfile.tempdir = None
        try:
            with (
                mock.patch.object(runner_module, "RETRY_S", 0.0),
                mock.patch.object(runner_module, "ATTEMPTS", 2),
                Grader([TOTAL], workers=2, cpu_limits=LIMIT) as grader,
            ):
                assert grader._folder.path.is_relative_to(disk)
                rows = [(prompt(mode), named(k)) for k in range(3) for mode in MODES]
                assert all(v.gt_correct for v in grader.grade_many(rows))
                filling = filled(disk)
                texts = [(prompt(mode), named("full")) for mode in MODES]
                full = grader.grade_many([*texts, (prompt(), fence(TOTAL.canonical_solution))])
                assert all(v.infra and v.reason == "infra" and not v.gt_correct for v in full[:-1]), full[:2]
                assert full[-1].gt_correct, "a program without files needs no disk"
                filling.unlink()
                assert all(v.gt_correct and not v.infra for v in grader.grade_many(texts)), "the trouble was remembered"
        finally:
            tempfile.tempdir = None
    return f"{len(texts)} of {len(full)} masked while it was full, all right afterwards"


@gate.invariant("where the disk fills while the program writes, its error is not its verdict")
def _():
    with small_disk(8192) as disk, mock.patch.dict(os.environ, {"TMPDIR": str(disk)}):
        tempfile.tempdir = None
        try:
            with (
                mock.patch.object(runner_module, "RETRY_S", 0.0),
                Grader([TOTAL], workers=1, cpu_limits=LIMIT) as grader,
            ):
                servers_of(grader)
                slow = answer(
                    "import time\nif len(nums) == 2:\n    time.sleep(0.6)\n"
                    "with open('big.bin', 'wb') as f:\n    f.write(bytes(500000))\nreturn sum(n * n + 7 for n in nums)"
                )
                made: list[Path] = []
                timer = threading.Timer(0.3, lambda: made.append(filled(disk)))
                timer.start()
                verdict = grader.grade(prompt(), slow)
                timer.join()
                assert verdict.infra and verdict.reason == "infra", verdict
                made[0].unlink()
                verdict = grader.grade(prompt(), slow)
                assert verdict.gt_correct and not verdict.infra, verdict
        finally:
            tempfile.tempdir = None
    return "ENOSPC in the child: masked; with room: right"


@gate.invariant(
    "where no file system can be mounted: no room reported is masked, and lasting trouble is raised with its rows"
)
def _():
    real = os.statvfs
    none = mock.patch.object(os, "statvfs", lambda path: os.statvfs_result((*real(path)[:4], 0, *real(path)[5:])))
    with tempfile.TemporaryDirectory() as name, mock.patch.object(runner_module, "RETRY_S", 0.0):
        folder = Path(name)
        (folder / "p.jsonl").write_text(json.dumps(problem_row(TOTAL)))
        rows = [("files", WRITES), ("no files", fence(TOTAL.canonical_solution)), ("wrong", answer("return 0"))]
        lines = [{"id": i, "problem_id": "total", "mode": "gt_only", "response": text} for i, text in rows]
        (folder / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        files = [folder / file for file in ("p.jsonl", "r.jsonl", "v.jsonl")]
        # The self-test writes as well, and would say it first.
        with none, mock.patch("vgrout.env.selftest.require_containment"):
            said = refusal(lambda: grade_files(*files, workers=1))
        assert said.startswith("1 of 3 responses could not be graded"), said
        found = verdict_rows(folder)
        assert [(i, row["infra"], row["gt_correct"]) for i, row in found.items()] == [
            ("files", True, False),
            ("no files", False, True),
            ("wrong", False, False),
        ], found
        grade_files(*files, workers=1)
        assert [row["gt_correct"] for row in verdict_rows(folder).values()] == [True, True, False]
        gone = mock.patch.object(Server, "run", side_effect=runner_module.InfraError("gone"))
        with Grader([TOTAL], workers=1, cpu_limits=LIMIT) as grader, gone:
            masked = grader.grade(prompt(), rows[1][1])
            assert masked.infra and not masked.gt_correct and not masked.channel, masked
    return said[:60] + "..."


HOLDS = """
import sys, time
from _attack_world import TOTAL
from vgrout.env.grader import Grader
from vgrout.env.scratch import PREFIX
grader = Grader([TOTAL], workers=1)
print(grader._folder.path, flush=True)
time.sleep(600)
"""


@gate.invariant("the folder of a grader that was killed is removed by the next one, and no other is")
def _():
    with tempfile.TemporaryDirectory() as name:
        paths = os.pathsep.join(sys.path)
        held = [
            subprocess.Popen(
                [sys.executable, "-c", HOLDS], env={"TMPDIR": name, "PYTHONPATH": paths}, stdout=-1, text=True
            )
            for _ in range(2)
        ]
        killed, living = (Path(p.stdout.readline().strip()) for p in held if p.stdout is not None)
        held[0].kill()
        held[0].wait()
        (killed / "12").mkdir()
        (killed / "12" / "result.txt").write_text("PASS")
        (young := Path(name) / f"{PREFIX}young").mkdir()
        (other := Path(name) / "vgrout-other").mkdir()
        long_ago = time.time() - 3600
        for path in (killed, living, other):
            os.utime(path, (long_ago, long_ago))
        assert killed.parent == living.parent == Path(name)
        with mock.patch.object(tempfile, "tempdir", name), Grader([TOTAL], workers=1) as grader:
            own = grader._folder.path
            assert {*Path(name).iterdir()} == {living, young, other, own}, [*Path(name).iterdir()]
        assert not own.exists() and living.exists()
        held[1].terminate()
        held[1].wait()
    return "one removed; a living grader's, a young one and a stranger's are kept"


if __name__ == "__main__":
    gate.main()
