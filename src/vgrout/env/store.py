"""A file of verdicts by their content: what is in it is not graded again, in this process or in a later one.

SQLite, because it holds any number of verdicts, is read by key, and survives a process that is killed while it writes.
It also holds the CPU limits that were measured: another measurement could give a problem another limit, and with it a
slow program another verdict.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from vgrout.env.labels import GRADER_VERSION
from vgrout.types import Problem, UserError, Verdict

COMMIT_S = 1.0
"""What a killed process may lose."""
_TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (content BLOB PRIMARY KEY, verdict TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cpu_limits (content BLOB PRIMARY KEY, seconds REAL NOT NULL) WITHOUT ROWID;
"""


def content_key(*parts: str | None) -> bytes:
    """A digest of these parts, with the grader's version and the form of its verdicts; None differs from every text."""
    digest = hashlib.sha256()
    for part in (GRADER_VERSION, *(field.name for field in fields(Verdict)), *parts):
        data = b"" if part is None else part.encode(errors="surrogatepass")
        digest.update(bytes([part is None]) + len(data).to_bytes(8) + data)
    return digest.digest()


def problem_key(problem: Problem) -> str:
    """What of a problem its verdicts and its CPU limit depend on."""
    tests = repr(problem.float_tolerance), *problem.asserts
    return content_key(problem.setup_code, problem.func_name, problem.canonical_solution, *tests).hex()


class VerdictStore:
    """The verdicts in one file. Threads may share it; a context manager."""

    def __init__(self, path: str | Path):
        """Opens or makes the file. UserError where it is something else or cannot be written."""
        self.path = Path(path)
        self._lock = threading.Lock()
        self._waiting: dict[bytes, str] = {}
        self._committed = time.monotonic()
        try:
            self._file = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
            self._file.executescript(_TABLES)
        except sqlite3.Error as error:
            raise UserError(
                f"verdict cache {path}: {error}; name a file that can be made, or remove this one"
            ) from error

    def __enter__(self) -> VerdictStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many verdicts are in the file."""
        with self._lock:
            self._commit()
            return self._found("SELECT COUNT(*) FROM verdicts")[0]

    def get(self, content: bytes) -> Verdict | None:
        """The verdict on this content, if it is known."""
        with self._lock:
            text = self._waiting.get(content)
            if text is None:
                row = self._found("SELECT verdict FROM verdicts WHERE content = ?", content)
                text = None if row is None else row[0]
        if text is None:
            return None
        found = json.loads(text).items()
        known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found}
        return Verdict(**known)

    def put(self, content: bytes, verdict: Verdict) -> None:
        """Keep a verdict; one that only says that the machine failed is not kept."""
        if verdict.infra:
            return
        with self._lock:
            self._waiting[content] = json.dumps(asdict(verdict))
            if time.monotonic() - self._committed >= COMMIT_S:
                self._commit()

    def cpu_limit(self, problem: Problem) -> float | None:
        """The CPU limit that was measured for the problem, if it is known."""
        key = content_key(problem_key(problem))
        with self._lock:
            row = self._found("SELECT seconds FROM cpu_limits WHERE content = ?", key)
        return None if row is None else row[0]

    def put_cpu_limit(self, problem: Problem, seconds: float) -> None:
        """Keep a measured CPU limit; one that is there already stays."""
        with self._lock, self._writing():
            row = content_key(problem_key(problem)), seconds
            self._file.execute("INSERT OR IGNORE INTO cpu_limits VALUES (?, ?)", row)

    def close(self) -> None:
        """Write what is waiting and close the file."""
        with self._lock:
            self._commit()
            self._file.close()

    def _found(self, query: str, *values: bytes) -> Any:
        """The first row. UserError where the file is damaged, or another program's."""
        try:
            return self._file.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise UserError(f"verdict cache {self.path}: {error}; remove this file, or name another") from error

    def _commit(self) -> None:
        if self._waiting:
            with self._writing():
                self._file.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", self._waiting.items())
            self._waiting = {}
        self._committed = time.monotonic()

    def _writing(self) -> _Writing:
        return _Writing(self)


class _Writing:
    """A transaction; UserError where the disk is full or the file is held by another process for too long."""

    def __init__(self, store: VerdictStore):
        self.store = store

    def __enter__(self) -> None:
        self.store._file.__enter__()

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.store._file.__exit__(kind, error, trace)
        except sqlite3.Error as failure:
            error = failure
        if isinstance(error, sqlite3.Error):
            raise UserError(f"verdict cache {self.store.path}: {error}; free disk space, or name another") from error
