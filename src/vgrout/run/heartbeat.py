"""Signs of life of a run: a lock that its process holds, and a small file that says where it is.

The lock goes with the process, however that ends, so a run is alive exactly while nobody else can take it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from loguru import logger

from vgrout.run.disk import disk_errors
from vgrout.types import UserError

HEARTBEAT: Final = "heartbeat.json"
LOCK: Final = ".lock"


class Lock:
    """Held by the process that writes to a run folder."""

    def __init__(self, run: Path):
        """Raises `UserError` where another process holds it, or where the folder cannot be written to."""
        with disk_errors(run / LOCK):
            self._file = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise UserError(
                f"{run} is being trained by another process{_whose(run)}; wait, or stop that one"
            ) from error

    def release(self) -> None:
        """Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def alive(run: Path) -> bool:
    """Whether a process holds the run's lock."""
    try:
        file = os.open(run / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(file)


class Heartbeat:
    """`with Heartbeat(run) as beat: ... beat.at(step, "generate")`: heartbeat.json every `every` seconds, by a thread of its
    own, so that work which is stuck still shows where; and a line in the log whenever one phase has lasted `patience` more."""

    def __init__(self, run: Path, *, every: float = 10.0, patience: float = 60.0):
        self.path, self.every, self.patience = run / HEARTBEAT, every, patience
        self._at: tuple[int, str, float] = (0, "start", time.monotonic())
        self._said, self._broken = 0, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def at(self, step: int, phase: str) -> None:
        """The run is in this phase of this step."""
        self._at, self._said = (step, phase, time.monotonic()), 0

    def __enter__(self) -> Heartbeat:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._write()

    def _beat(self) -> None:
        while not self._stop.wait(self.every):
            self._write()
            step, phase, since = self._at
            seconds = time.monotonic() - since
            if seconds >= (self._said + 1) * self.patience:
                self._said = int(seconds // self.patience)
                logger.info(f"step {step}: {phase} for {seconds:.0f} s")

    def _write(self) -> None:
        step, phase, _ = self._at
        content = {"time": time.time(), "pid": os.getpid(), "host": socket.gethostname(), "step": step, "phase": phase}
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            temporary.write_text(json.dumps(content) + "\n")
            temporary.replace(self.path)
        except OSError as error:
            # A sign of life is not worth a run; where the disk is broken, the next write of a result says so.
            if not self._broken:
                logger.warning(f"cannot write {self.path}: {error.strerror}; the run goes on without")
            self._broken = True


def _whose(run: Path) -> str:
    try:
        found = json.loads((run / HEARTBEAT).read_text())
        return f" (process {found['pid']} on {found['host']}, step {found['step']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
