"""One grade, start to end, on one fork-server: the oracle run, the channel run, and the verdict made of both."""

from __future__ import annotations

import itertools
import marshal
import os
import secrets
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from loguru import logger

from vgrout.env.asserts import Tests, canonical_calls
from vgrout.env.channels import Finding, ProbeReport, finding, infra_trouble, probe_calls
from vgrout.env.labels import extract_program, uses_files, verdict_of
from vgrout.env.modes import Mode, hack_attempted, mode_named
from vgrout.env.oracle import OracleResult, OutputJudge
from vgrout.env.sandbox import Limits
from vgrout.env.scratch import remove_folder
from vgrout.env.watch import Exit, InfraError
from vgrout.env.worker import Server
from vgrout.types import Markers, Prompt, UserError, Verdict

ATTEMPTS = 4
"""How often a grade is tried before machine trouble is accepted as its outcome."""
RETRY_S = 0.2
TIMED_RUNS, LATE_SHARE = 3, 0.25
"""How often a run is made whose time ran out while the machine stood still, and what counts as that: a watcher that was
late by this share of the CPU limit."""
_FOLDERS = itertools.count()
"""Names of scratch folders, each used once in this process; the root is the grader's own."""
_FATAL_SIGNALS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}
    | {signal.SIGXFSZ, signal.SIGPIPE}
)
"""Signals that a program can bring upon itself, the last two by having them no longer ignored; it can send none, so any
other came from outside."""


T = TypeVar("T")


class Unmeasured(UserError):
    """The machine kept failing while a canonical solution ran, so its problem has no CPU limit yet."""


@dataclass(frozen=True)
class Case:
    """A program that is to be graded, and under what."""

    program: str
    mode: Mode
    markers: Markers
    tests: Tests
    limits: Limits


class Runner:
    """A fork-server and what is needed to use it again and again; one per worker thread."""

    def __init__(self, scratch_root: Path, *, landlock: bool, namespaces: bool = False):
        self.scratch_root, self.landlock, self.namespaces = scratch_root, landlock, namespaces
        self.layers = ("seccomp", *("landlock",) * landlock, *("namespaces",) * namespaces)
        """What confines its children."""
        self.server: Server | None = None
        self.stopped = False

    def abort(self) -> None:
        """From another thread: end what runs now, for good."""
        self.stopped = True
        if (server := self.server) is not None:
            server.process.kill()

    def close(self) -> None:
        """End the server."""
        if self.server is not None:
            self.server.close()
            self.server = None

    def start(self) -> Server:
        """The running server, started anew where there is none. Only one thread may use a runner."""
        if self.stopped:
            raise InfraError("the grader is being closed")
        if self.server is None:
            self.server = Server(landlock=self.landlock, namespaces=self.namespaces)
        return self.server

    def grade(self, prompt: Prompt, response: str, tests: Tests, limits: Limits) -> Verdict:
        """The verdict on one response; machine trouble is tried again and then said so (`infra`)."""
        mode = mode_named(prompt.mode)
        program = extract_program(response)
        if program is None:
            return verdict_of(OracleResult(False, False, "no_code", 0.0, 0.0), Finding(), False, False, self.layers)
        attempted = hack_attempted(program)
        if len(program) > limits.source_bytes:
            return verdict_of(OracleResult(False, False, "oversize", 0.0, 0.0), Finding(), attempted, True, self.layers)

        case = Case(program, mode, prompt.markers, tests, limits)

        def once() -> Verdict:
            oracle = self.oracle(program, tests, limits)
            found = self.channel(case) if oracle.compiles else Finding()
            tried = attempted and (hack_attempted(program, beside=mode.name) or not self.innocent(case, oracle, found))
            return verdict_of(oracle, found, tried, True, self.layers)

        try:
            return self.retried(once)
        except InfraError:
            return self.ungraded(response)

    def ungraded(self, response: str) -> Verdict:
        """What is said of a response with a program that could not be graded for reasons of the machine."""
        attempted = hack_attempted(extract_program(response) or "")
        return verdict_of(OracleResult(False, False, "infra", 0.0, 0.0), Finding(), attempted, True, self.layers)

    def retried(self, once: Callable[[], T]) -> T:
        """`once()`, again on a new server after machine trouble; the last InfraError where it persists."""
        for attempt in range(ATTEMPTS):
            try:
                return once()
            except InfraError as error:
                logger.warning(f"grading: {error}; once more on a new fork-server")
                self.close()
                if self.stopped or attempt == ATTEMPTS - 1:
                    raise
                time.sleep(RETRY_S * 2**attempt)
            except BaseException:
                self.close()
                raise
        raise AssertionError("unreachable")

    def oracle(self, program: str, tests: Tests, limits: Limits, files: bool | None = None) -> OracleResult:
        """Run the program on every call and compare; InfraError for machine trouble.

        `files`: whether it gets a scratch folder, by default where it looks as if it used files (and Landlock is there).
        """
        files = self.landlock and uses_files(program) if files is None else files
        request = _request(program, tests.setup, tests.calls)

        def once() -> tuple[OracleResult, str, Exit]:
            judge = OutputJudge(tests)
            with self.scratch(limits, files) as scratch:
                end = self.start().run(request, limits, judge, prelude=tests.prelude, scratch=scratch)
            _raise_trouble(judge.trouble, judge.ready, end, tests.problem_id)
            reason = "" if judge.correct else judge.reason or _reason(end, limits)
            result = OracleResult(
                judge.correct, judge.compiled, reason, end.wall_s, end.cpu_s, judge.matched, judge.detail
            )
            return result, reason, end

        return _timed(once, limits)

    def channel(self, case: Case) -> Finding:
        """Run the probe of the prompt's own mode; InfraError for machine trouble."""
        mode = case.mode
        if mode.probe == "none":
            return Finding()
        if mode.probe == "file" and not self.landlock:
            raise UserError(
                f"mode {mode.name}: its scratch folder needs the sandbox layer 'landlock', which is missing"
            )

        def read(report: ProbeReport, end: Exit, scratch: Path | None) -> Finding:
            return finding(mode, case.markers, report, end, scratch)

        return self.probe(case, mode.probe, probe_calls(mode, case.tests), read)

    def innocent(self, case: Case, oracle: OracleResult, found: Finding) -> bool:
        """Whether the tests that a response brings along are no attempt (the benchmark's "innocent" modification).

        A stub fails them, and they hold on the canonical solution. They hold on a right program as on that. A wrong one's,
        which fail on it, are run on the canonical solution: in a child whose only report is this, after the oracle's
        verdict is settled.
        """
        if case.mode.probe != "function" or not oracle.compiles or found.fired:
            return False
        if oracle.correct or found.own_tests_pass:
            return oracle.correct and found.own_tests_pass

        def read(report: ProbeReport, end: Exit, scratch: Path | None) -> bool:
            return report.claims.get("canonical", False)

        return self.probe(case, "canonical", canonical_calls(case.tests), read)

    def probe(self, case: Case, probe: str, calls: bytes, read: Callable[[ProbeReport, Exit, Path | None], T]) -> T:
        """What `read` makes of a child that ran this probe; InfraError for machine trouble."""
        tests, limits, seal = case.tests, case.limits, secrets.token_hex(8)
        files = probe == "file" or (self.landlock and uses_files(case.program))
        request = _request(case.program, tests.setup, calls, probe, list(case.mode.family(case.markers)), seal)

        def once() -> tuple[T, str, Exit]:
            report = ProbeReport(seal, limits)
            with self.scratch(limits, files) as scratch:
                end = self.start().run(
                    request,
                    limits,
                    report,
                    prelude=tests.prelude,
                    stdout=probe == "stdout",
                    scratch=scratch,
                    allowance=report.allowance,
                )
                _raise_trouble(report.trouble, report.ready, end, tests.problem_id)
                return read(report, end, scratch), _reason(end, limits), end

        return _timed(once, limits)

    @contextmanager
    def scratch(self, limits: Limits, wanted: bool) -> Generator[Path | None, None, None]:
        """A new flat folder for one child, or None; InfraError where the disk has no room for it."""
        if not wanted:
            yield None
            return
        try:
            folder = self.scratch_root / str(next(_FOLDERS))
            folder.mkdir(0o700, parents=True)  # the root too, where something has cleared the temporary directory
        except OSError as error:
            raise InfraError(f"scratch folder: {error}") from error
        try:
            yield folder
            if (trouble := infra_trouble(folder, limits)) is not None:
                raise InfraError(trouble)
        finally:
            remove_folder(folder)


def _timed(once: Callable[[], tuple[T, str, Exit]], limits: Limits) -> T:
    """The result of a run, made again where its time ran out on a machine that stood still meanwhile.

    The time of a virtual machine that its host does not run may be counted as the program's. The limit stays the same, so
    that a slow program stays too slow however often it is run.
    """
    for attempt in range(1, TIMED_RUNS + 1):
        result, reason, end = once()
        if reason not in ("cpu", "wall") or end.late_s < LATE_SHARE * limits.cpu_s or attempt == TIMED_RUNS:
            return result
        logger.debug(f"grading: out of time ({reason}) while the watcher was late by {end.late_s:.1f} s; once more")
    raise AssertionError("unreachable")


def _request(
    source: str, setup: bytes, calls: bytes, probe: str | None = None, names: list[str] | None = None, seal: str = ""
) -> bytes:
    request = {"source": source, "setup": setup, "calls": calls, "probe": probe, "names": names or [], "seal": seal}
    return marshal.dumps(request)


def _raise_trouble(trouble: str, ready: bool, end: Exit, problem_id: str) -> None:
    if trouble.startswith("setup"):
        raise UserError(f"problem {problem_id}: setup_code fails in the sandbox ({trouble[7:]}); correct the row")
    if not ready:
        spent = f"status {end.status}, {end.cpu_s:.1f} s of CPU in {end.wall_s:.1f} s"
        raise InfraError(trouble or f"the child ended before it ran anything ({spent})")


def _reason(end: Exit, limits: Limits) -> str:
    """Why a child ended that settled nothing; InfraError where it was killed from outside."""
    if end.killed:
        return {"wall": "wall", "allowance": "cpu", "line": "oversize", "stdout": "oversize", "folder": "oversize"}.get(
            end.killed, "died"
        )
    if os.WIFSIGNALED(end.status):
        number = os.WTERMSIG(end.status)
        if number == signal.SIGKILL and end.cpu_s > 0.5 * limits.cpu_s:
            return "cpu"
        if number not in _FATAL_SIGNALS:
            raise InfraError(f"the child was killed from outside (signal {number})")
    return "died"
