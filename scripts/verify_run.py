"""Gate: a run folder can be trusted.

Invariants:
- creating a run writes its files whole; every way in which it can fail is one line and leaves nothing behind
- a writer that is killed leaves the old file or the new one, never a mixture; a full disk leaves no half line
- a run says whether it finished, failed and why
- the code revision tells a clean, a dirty and an unknown checkout apart
- a container that pays for two processors counts as two
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from loguru import logger

from _gate import Gate, Skip
from _runs import CONFIG, create, folder, refused, row
from vgrout.cores import usable_cores
from vgrout.run import disk
from vgrout.run.folder import RunFolder, list_runs
from vgrout.run.provenance import code_revision
from vgrout.types import UserError

gate = Gate(__doc__)
logger.remove()


def contents(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@gate.invariant("a new run has its files, a unique name, and takes a given name once")
def _():
    with folder() as root:
        with create(root / "deep/er", sandbox={"seccomp": True}) as run:
            assert run.read_json("config.json") == {**CONFIG, "out": "out"}
            machine = run.read_json("environment.json")
            assert (
                machine["sandbox"] == {"seccomp": True} and machine["versions"]["torch"] and machine["code"]["revision"]
            )
            assert run.path.name.endswith("_smoke_absorb_seed3") and run.status()["state"] == "running"
        runs = [create(root) for _ in range(3)]
        assert len({run.path for run in runs}) == 3
        create(root, name="mine").close()
        refused(UserError, "exists; choose another name", lambda: create(root, name="mine"))
        assert not [path for path in contents(root) if path.endswith(".tmp")]
        assert len(list_runs(root)) == 4
        (root / "runs/empty").mkdir()
        (root / "runs/file").write_text("x")
        for name in ("empty", "file"):
            refused(UserError, "exists; choose another name", lambda name=name: create(root, name=name))
        for run in runs:
            run.close()
    return "9 files, 4 runs"


@gate.invariant("runs that start at the same moment do not take the folder from under each other")
def _() -> str:
    def start(number: int) -> None:
        barrier.wait()
        disk.require_writable(root / "new", f"run{number}")
        create(root / "new", name=f"run{number}").close()

    rounds = 40
    # Without what takes the time, asking git and waiting for the disk, the threads meet in the folders more often.
    quick = mock.patch("vgrout.run.folder.environment", lambda sandbox: {}), mock.patch("os.fsync", lambda file: None)
    for _ in range(rounds):
        barrier = threading.Barrier(8)
        with folder() as root, ThreadPoolExecutor(8) as pool, quick[0], quick[1]:
            list(pool.map(start, range(8)))
            assert len(list((root / "new/runs").iterdir())) == 8
    return f"8 at a time, {rounds} times"


@gate.invariant("every failure of creation is one line and leaves nothing behind")
def _():
    with folder() as root:
        (root / "file").write_text("x")
        before = contents(root)
        refused(UserError, "is a file", lambda: create(root / "file"))
        refused(UserError, "is a file", lambda: create(root / "file" / "below"))
        refused(UserError, "shorter name", lambda: create(root / "new", name="n" * 300))
        for name in ("", "../up", "a/b", ".hidden", "a\nb"):
            refused(UserError, "choose another name", lambda name=name: create(root, name=name))
        refused(ValueError, "configuration", lambda: create(root, config={"x": float("nan")}))
        refused(ValueError, "configuration", lambda: create(root, config={"x": object()}))
        assert contents(root) == before, contents(root)
        attempts = 9
        if Path("/proc/sys").is_dir():
            refused(UserError, "cannot make a run folder", lambda: create(Path("/proc/sys")))
            attempts += 1
        create(root / "taken", name="mine").close()
        refused(UserError, "exists", lambda: disk.require_writable(root / "taken", "mine"))
        before = contents(root)
        refused(UserError, "is a file", lambda: disk.require_writable(root / "file"))
        disk.require_writable(root / "taken", "other")
        disk.require_writable(root / "far/away")
        with failing_fsync():
            refused(UserError, "free some space", lambda: create(root / "new"))
        assert contents(root) == before, contents(root)
    return f"{attempts + 1} failures by name"


@contextmanager
def failing_fsync() -> Generator[None]:
    """The disk is full: data can be handed over, but not written out."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch.object(os, "fsync", side_effect=error):
        yield


KILLED = """
import os, signal, sys
from pathlib import Path
from vgrout.run import disk
target, point = Path(sys.argv[1]), sys.argv[2]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if point == "fsync": disk.os.fsync = die
else: Path.replace = die
disk.write_atomic(target, "new" * 100000)
"""


@gate.invariant("a writer killed half-way leaves the old file intact")
def _():
    with folder() as root:
        target = root / "eval.json"
        disk.write_atomic(target, "old")
        for point in ("fsync", "rename"):
            done = subprocess.run([sys.executable, "-c", KILLED, str(target), point], capture_output=True)
            assert done.returncode == -signal.SIGKILL, done.stderr.decode()
            assert target.read_text() == "old"
        disk.write_atomic(target, "new")
        assert target.read_text() == "new"
    return "killed before fsync and before rename"


@gate.invariant("a full disk leaves no half line and no half file, and says so in one line")
def _():
    with folder() as root, create(root) as run:
        run.log_step(row(0))
        run.write_json("eval.json", {"a": 1})
        sizes = {path.name: path.stat().st_size for path in run.path.iterdir() if path.name != "log.txt"}
        with failing_fsync():
            refused(UserError, "free some space", lambda: run.log_step(row(1)))
            refused(UserError, "free some space", lambda: run.log_rollouts(1, [{"text": "x"}]))
            refused(UserError, "free some space", lambda: run.write_json("eval.json", {"a": 2}))
        assert sizes == {path.name: path.stat().st_size for path in run.path.iterdir() if path.name != "log.txt"}
        run.log_step(row(1))
        assert [r.step for r in run.metrics()] == [0, 1]
    return f"{len(sizes)} files unchanged"


@gate.invariant("a run says whether it finished, and why it failed")
def _():
    with folder() as root:
        with create(root) as run:
            logger.debug("only in the file")
        assert run.status()["state"] == "finished" and run.status()["ended"]
        assert "only in the file" in (run.path / "log.txt").read_text()
        for error in (UserError("no such model\nmore"), KeyboardInterrupt()):
            try:
                with create(root) as run:
                    raise error
            except (UserError, KeyboardInterrupt):
                pass
            reason = "UserError: no such model" if isinstance(error, UserError) else "KeyboardInterrupt"
            state = "failed" if isinstance(error, UserError) else "stopped"
            assert run.status()["state"] == state and run.status()["reason"] == reason, run.status()
            assert "Traceback" in (run.path / "log.txt").read_text()
        refused(UserError, "is not a run folder", lambda: RunFolder.open(root))
        (run.path / "status.json").write_text("{")
        refused(UserError, "expected JSON", run.status)
        logged = (run.path / "log.txt").read_text()
        logger.info("after the end")
        assert (run.path / "log.txt").read_text() == logged
    return "finished, failed, interrupted, not a run, damaged"


@gate.invariant("the code revision tells clean, dirty, changed and unknown checkouts apart")
def _():
    with folder() as root:
        tracked = root / "a.py"
        assert code_revision(tracked)["revision"] == "unknown"
        git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
        try:
            subprocess.run([*git, "init", "--quiet"], check=True, capture_output=True)
        except FileNotFoundError:
            raise Skip("git is not installed") from None
        tracked.write_text("x = 1\n")
        assert code_revision(tracked)["revision"] == "unknown"
        subprocess.run([*git, "add", "a.py"], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", "x"], check=True)
        states = [code_revision(tracked)]
        assert states[0]["dirty"] is False and states[0]["diff_sha256"] is None
        for name, text in (("a.py", "x = 2\n"), ("b.py", "y = 1\n"), ("b.py", "y = 2\n")):
            (root / name).write_text(text)
            states.append(code_revision(tracked))
            assert states[-1]["dirty"] is True
        assert code_revision(root / "b.py")["revision"] == "unknown"
        assert len({state["revision"] for state in states}) == 1 and len({str(s["diff_sha256"]) for s in states}) == 4
    return "4 states, 4 hashes"


@gate.invariant("the processors counted are those that affinity and the control group's quota leave")
def _() -> str:
    everything = set(range(16))
    with folder() as scratch, mock.patch("os.sched_getaffinity", lambda pid: everything):
        assert usable_cores(scratch) == 16
        for text, expected in (("max 100000", 16), ("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1)):
            (scratch / "cpu.max").write_text(f"{text}\n")
            assert usable_cores(scratch) == expected, text
        (scratch / "cpu.max").unlink()
        (scratch / "cpu").mkdir()
        (scratch / "cpu/cpu.cfs_period_us").write_text("100000\n")
        for quota, expected in (("-1", 16), ("300000", 3)):
            (scratch / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
            assert usable_cores(scratch) == expected, quota
        (scratch / "cpu.max").write_text("3200000 100000\n")
        assert usable_cores(scratch) == 16
    return f"{usable_cores()} here"


if __name__ == "__main__":
    gate.main()
