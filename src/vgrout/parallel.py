"""Several runs side by side on one machine: a process each, one table for all of them, and a log file each.

Processes are forked from a server that has imported the package once, because importing it costs more than a short
run's first steps. A run that fails stops nothing: the others go on, and how it failed is reported with theirs.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from loguru import logger

from vgrout.config import RunConfig
from vgrout.interventions import intervention_class
from vgrout.run.disk import disk_errors
from vgrout.run.folder import METRICS, RunFolder
from vgrout.run.live import LiveTable
from vgrout.run.logs import latest_metrics
from vgrout.types import Interrupted, UserError

PRELOAD = ["vgrout.train", "transformers.models.qwen3.modeling_qwen3", "vgrout.micro.preload"]
"""What every run needs and takes seconds to import."""
POLL_SECONDS = 0.5
STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a run ended: its folder, or why there is none."""

    name: str
    folder: RunFolder | None
    cause: str = ""


@dataclass
class Job:
    """A run that was asked for, and its process once it has started."""

    config: RunConfig[Any]
    log: Path
    process: ForkServerProcess | None = None
    started: float = 0.0
    seconds: float | None = None

    @property
    def name(self) -> str:
        return str(self.config.name)

    @property
    def folder(self) -> Path:
        return self.config.out / "runs" / self.name

    @property
    def state(self) -> str:
        if self.process is None:
            return "waiting"
        if self.process.exitcode is None:
            return "running"
        return "finished" if self.process.exitcode == 0 else "FAILED"


def run_side_by_side(
    configs: Sequence[RunConfig[Any]], *, jobs: int, title: str, limits: Mapping[str, float] | None = None
) -> list[Ended]:
    """Trains and evaluates every configuration, `jobs` at a time; returns how each ended, in order.

    Each needs a name of its own; `limits` are known CPU limits by problem id. A run that fails stops no other; on an interrupt every process is stopped.
    """
    names = [c.name for c in configs]
    if None in names or len(set(names)) != len(names):
        raise ValueError(f"run_side_by_side: every run needs a name of its own, got {names}")
    require_jobs(jobs)
    start_server()
    context = multiprocessing.get_context("forkserver")
    table = [Job(c, c.out / "logs" / f"{c.name}.txt") for c in configs]
    with one_thread_per_process(), LiveTable(title, LIVE_HEAD) as live:
        try:
            while not all(job.seconds is not None for job in table):
                _advance(table, jobs, context.Process, limits)
                live.update([_line(job) for job in table])
                time.sleep(POLL_SECONDS)
        finally:
            _stop(table)
    return [
        Ended(job.name, None, _cause(job)) if job.state == "FAILED" else Ended(job.name, RunFolder.open(job.folder))
        for job in table
    ]


def start_server() -> None:
    """Starts the process that the runs are forked from, which imports the package meanwhile; at most one is started."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    with one_thread_per_process():
        forkserver.ensure_running()


def require_jobs(jobs: int) -> None:
    """`UserError` for a number of runs at a time that is none."""
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: expected at least one run at a time")


def _advance(
    table: Sequence[Job],
    jobs: int,
    process: Callable[..., ForkServerProcess],
    limits: Mapping[str, float] | None,
) -> None:
    """Notes the runs that have ended and starts as many as there is room for."""
    for job in table:
        if job.process is not None and job.seconds is None and job.process.exitcode is not None:
            job.seconds = time.monotonic() - job.started
            if job.state == "FAILED":
                logger.error(f"{job.name} failed after {job.seconds:.0f} s: see {job.log}")
    running = sum(job.state == "running" for job in table)
    for job in [job for job in table if job.process is None][: jobs - running]:
        with disk_errors(job.log):
            job.log.parent.mkdir(parents=True, exist_ok=True)
        started = process(target=train_quietly, args=(job.config, job.log, limits), name=job.name)
        started.start()
        job.process, job.started = started, time.monotonic()


def _cause(job: Job) -> str:
    """What is known of a failed run: its last line, or the signal that killed it."""
    code = job.process.exitcode if job.process is not None else None
    killed = f"killed by {signal.Signals(-code).name}; " if code is not None and code < 0 else ""
    lines = job.log.read_text(encoding="utf-8").strip().splitlines() if job.log.is_file() else []
    return f"{job.name}: {killed}{lines[-1] if lines else 'it wrote nothing'} (whole log: {job.log})"


def _stop(table: Sequence[Job]) -> None:
    """Ends every run that is still there; one that does not end when asked is killed."""
    alive = [job.process for job in table if job.process is not None and job.process.exitcode is None]
    for process in alive:
        process.terminate()
    for process in alive:
        process.join(STOP_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()


def train_quietly(config: RunConfig[Any], log: Path, limits: Mapping[str, float] | None) -> None:
    """A child's work: the run, with everything that it prints in `log`. Exits 2 on a user's mistake, 1 on another error."""
    from vgrout.run.console import setup_console
    from vgrout.train import train

    _end_with_parent()
    # File descriptors and not sys.stdout: libraries and the grader's server write to them directly.
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    setup_console()
    try:
        train(config, limits)
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except Interrupted as stop:
        sys.stderr.write(f"interrupted: {stop}\n")
        sys.exit(130)


def _end_with_parent() -> None:
    """Ends this run when the process that it was forked from ends, which it does with the command, however that ended."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@contextlib.contextmanager
def one_thread_per_process():
    """Children inherit the environment: a thread pool in each would only fight over the cores."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


LIVE_HEAD = ("run", "state", "step", "hack", "solve", "seconds")
RECENT = 5


def _line(job: Job) -> tuple[str, ...]:
    """A run's line: hack of hinted and solve of hint-free prompts, both blocks acting, as means over the last steps."""
    rows = latest_metrics(job.folder / METRICS, RECENT) if job.process is not None else []
    step = f"{int(rows[-1]['step']) + 1 if rows else 0}/{job.config.steps}"
    took = job.seconds
    if took is None and job.process is not None:
        took = time.monotonic() - job.started
    mark = " *" if intervention_class(job.config.intervention).oracle else ""
    return (
        f"{job.name}{mark}",
        job.state,
        step,
        _mean([row["hack_full"] for row in rows]),
        _mean([row["solve_full"] for row in rows]),
        "-" if took is None else f"{took:.0f}",
    )


def _mean(values: Sequence[float | None]) -> str:
    defined = [value for value in values if value is not None]
    return f"{sum(defined) / len(defined):.2f}" if defined else "-"
