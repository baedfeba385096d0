"""Trouble for a grader: processes killed at random, a disk without room, and `vgrout grade` as a process to trouble."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from _attack_world import REPOSITORY, TOTAL, children_of
from _gate import Skip
from _grading import problem_row


class Killer(threading.Thread):
    """Kills what `targets` finds at random instants until it is stopped."""

    def __init__(self, targets: Callable[[], list[int]], seed: int, every: float):
        super().__init__(daemon=True)
        self.targets, self.random, self.every = targets, random.Random(seed), every
        self.kills = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(self.random.uniform(0.3, 1.7) * self.every):
            for pid in self.targets()[:1]:
                try:
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:
                    pass

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        self.join()


def some_of(parent: Callable[[], list[int]], seed: int) -> Callable[[], list[int]]:
    """By turns a fork-server that has a child and a child of one; none before the second is there, while the first is
    still tested."""
    chance = random.Random(seed)

    def targets() -> list[int]:
        servers = [pid for pid in parent() if "server.py" in command_of(pid)]
        at_work = {pid: children_of(pid) for pid in servers} if len(servers) > 1 else {}
        children = [child for found in at_work.values() for child in found]
        found = children if chance.random() < 0.5 else [pid for pid in at_work if at_work[pid]]
        return chance.sample(found, len(found))

    return targets


def command_of(pid: int) -> str:
    """A process' command line, "" once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def grade_command(folder: Path, rows: list[tuple[str, str, str]]) -> subprocess.Popen[bytes]:
    """`vgrout grade` on these rows, started; its verdicts go to `v.jsonl`."""
    lines = [{"id": i, "problem_id": "total", "mode": mode, "response": text} for i, mode, text in rows]
    (folder / "p.jsonl").write_text(json.dumps(problem_row(TOTAL)))
    (folder / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-c", "from vgrout.cli import main; main()", "grade", "--workers", "3"]
    for name, file in (("problems", "p.jsonl"), ("responses", "r.jsonl"), ("out", "v.jsonl")):
        command += [f"--{name}", str(folder / file)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "TMPDIR": str(folder)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def verdict_rows(folder: Path) -> dict[str, dict]:
    """Verdict rows by id, without their times."""
    lines = (folder / "v.jsonl").read_text().splitlines()
    return {row["id"]: {k: v for k, v in row.items() if k not in ("wall_s", "cpu_s")} for row in map(json.loads, lines)}


def reaped(pid: int) -> bool:
    """Reap a process that has ended and was left to this one; whether it is still alive."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


@contextmanager
def small_disk(kib: int) -> Generator[Path]:
    """A file system of its own with so little room, or Skip where this process may not mount one."""
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory() as folder:
        if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={kib}k".encode()) != 0:
            raise Skip(f"no file system can be mounted here ({errno.errorcode[ctypes.get_errno()]})")
        try:
            yield Path(folder)
        finally:
            libc.umount2(folder.encode(), 2)


def filled(folder: Path) -> Path:
    """Take all the room there is."""
    file = folder / "filling"
    with file.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
    return file
