"""The run folder out/runs/NAME: everything that a result may be computed from, written so that a kill cannot spoil it.

    with RunFolder.create(Path("out"), config, columns(MODES), label="smoke_absorb_seed0") as run:
        run.write_json("partition.json", partition)
        run.log_rollouts(step, records); run.log_step(row)      # rollouts first: a metrics row vouches for them

Leaving the block writes status.json: `finished`, or `failed` or `stopped` with the reason. A run killed outright stays
`running`, so only `finished` means that a run is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from vgrout.run.columns import Column, check_row
from vgrout.run.console import add_log_file
from vgrout.run.disk import append, cut, disk_errors, dumps, make_folder, read_json, write_atomic
from vgrout.run.heartbeat import Lock
from vgrout.run.logs import append_rollouts, cut_rollouts, metric_lines
from vgrout.run.provenance import environment
from vgrout.types import Interrupted, StepRow, UserError

CONFIG, ENVIRONMENT, STATUS, COLUMNS = "config.json", "environment.json", "status.json", "columns.json"
LIMITS = "limits.json"
METRICS, ROLLOUTS, EVALUATION, LOG, CHECKPOINTS = (
    "metrics.jsonl",
    "rollouts.jsonl.zst",
    "eval.json",
    "log.txt",
    "checkpoints",
)


class RunFolder:
    """One run's folder. `create` starts a run, `open` reads one, `resume_at` continues one."""

    def __init__(self, path: Path, declared: Sequence[Column]):
        self.path = path
        self.columns = tuple(declared)
        self._last_step: int | None = None
        self._log: int | None = None
        self._lock: Lock | None = None

    @classmethod
    def create(
        cls,
        root: Path,
        config: Mapping[str, object],
        declared: Sequence[Column],
        *,
        label: str,
        name: str | None = None,
        sandbox: Mapping[str, object] | None = None,
    ) -> RunFolder:
        """Makes root/runs/NAME with config.json, environment.json, columns.json, status.json and empty logs.

        `name` is taken as given and must be new; without one NAME is YYYYmmdd-HHMMSS_label, with a number behind it
        where that exists. `sandbox` is the grader's report of its layers. UserError where the folder cannot be made;
        nothing is left behind then.
        """
        now = datetime.now(UTC)
        files = {
            CONFIG: dumps(dict(config), "the configuration"),
            ENVIRONMENT: dumps(environment(sandbox), "the environment"),
            COLUMNS: dumps([asdict(column) for column in declared]),
            STATUS: dumps({"state": "running", "reason": "", "started": now.isoformat(), "ended": None}),
            METRICS: "",
            ROLLOUTS: "",
            LOG: "",
        }
        run = cls(make_folder(root / "runs", name, f"{now:%Y%m%d-%H%M%S}_{_plain_name(label)}", files), declared)
        run._start(-1)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run, for reading; UserError where `path` is no run folder."""
        if not (path / CONFIG).is_file() or not (path / COLUMNS).is_file():
            raise UserError(
                f"{path} is not a run folder (no {CONFIG} or {COLUMNS} in it); name a folder under out/runs"
            )
        with disk_errors(path / COLUMNS, "read"):
            text = (path / COLUMNS).read_bytes()
        try:
            declared = [Column(**fields) for fields in json.loads(text)]
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path / COLUMNS}: expected a list of metric columns ({error}); the file was damaged or edited"
            ) from error
        return cls(path, declared)

    def resume_at(self, step: int, declared: Sequence[Column]) -> None:
        """Continues after `step` (-1: from the start): cuts metrics and rollouts there and opens the logs again."""
        if tuple(declared) != self.columns:
            names = sorted({c.name for c in declared} ^ {c.name for c in self.columns}) or "meanings"
            raise UserError(
                f"{self.path}: its metric columns differ from this version's ({names}); resume with the code revision "
                f"in {ENVIRONMENT}"
            )
        for leftover in self.path.rglob(".*.tmp"):
            leftover.unlink()
        size, last = 0, -1
        for line, row in metric_lines(self.path / METRICS):
            if row["step"] > step:
                break
            size, last = size + len(line), row["step"]
        if last < step:
            raise UserError(
                f"{self.path}: metrics end at step {last}, before the step {step} to resume after; the run folder is damaged"
            )
        cut(self.path / METRICS, size)
        cut_rollouts(self.path / ROLLOUTS, step)
        self._status("running", "")
        self._start(last)

    def _start(self, last_step: int) -> None:
        self._last_step = last_step
        self.lock()
        with disk_errors(self.path / LOG):
            self._log = add_log_file(self.path / LOG)

    def lock(self) -> None:
        """Holds the folder against other processes until `close`; `UserError` where another one writes to it."""
        if self._lock is None:
            self._lock = Lock(self.path)

    # Writing

    def write_json(self, name: str, value: object) -> None:
        """Writes plain data to the file `name` in the run folder, whole or not at all."""
        if not name.endswith(".json") or Path(name).name != name:
            raise ValueError(f"write_json: expected a file name ending in .json, got {name!r}")
        write_atomic(self.path / name, dumps(value, name))

    def read_json(self, name: str) -> dict:
        return read_json(self.path / name)

    def log_step(self, row: StepRow) -> None:
        """Appends one line to metrics.jsonl; see `columns.check_row` for what it refuses. Steps must go up."""
        if self._last_step is None:
            raise RuntimeError(f"{self.path} was opened for reading; call resume_at before logging to it")
        if row.step <= self._last_step:
            raise ValueError(f"metrics: step {row.step} follows step {self._last_step}; steps must go up")
        line = dumps(check_row(row, self.columns), "metrics", indent=None)
        append(self.path / METRICS, line.encode() + b"\n")
        self._last_step = row.step

    def log_rollouts(self, step: int, records: Iterable[Mapping[str, object]]) -> None:
        """Appends the step's rollouts as one frame of rollouts.jsonl.zst."""
        if self._last_step is None or step <= self._last_step:
            raise ValueError(f"rollouts: step {step} is already closed by its metrics row, or the run is read-only")
        append_rollouts(self.path / ROLLOUTS, step, records)

    def checkpoint_path(self, update: int | str, suffix: str = ".safetensors") -> Path:
        """checkpoints/ckpt_updateNNNN (0000 is the init), or a named one such as `first_hack`; makes the folder."""
        folder = self.path / CHECKPOINTS
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
        return folder / ((f"ckpt_update{update:04d}" if isinstance(update, int) else update) + suffix)

    # Reading

    def metrics(self) -> list[StepRow]:
        """All logged steps; a torn last line (a kill while it was written) is left out with a warning."""
        return [StepRow(row.pop("step"), row) for _, row in metric_lines(self.path / METRICS)]

    def checkpoints(self) -> list[Path]:
        """Numbered checkpoints, by number of updates: 10000 comes after 9990."""
        found = (self.path / CHECKPOINTS).glob("ckpt_update*.safetensors")
        numbers = {path: path.stem.removeprefix("ckpt_update") for path in found}
        return sorted((path for path in numbers if numbers[path].isdecimal()), key=lambda path: int(numbers[path]))

    def status(self) -> dict:
        """`state` (running, finished, failed, stopped by the user), `reason`, `started`, `ended`."""
        return read_json(self.path / STATUS)

    def known_status(self) -> dict:
        """The same; empty, with a warning, where the file is damaged or gone: nothing of a run depends on it."""
        try:
            return self.status()
        except UserError as error:
            logger.warning(str(error))
            return {}

    # Ending

    def finish(self) -> None:
        """Marks the run complete."""
        self._status("finished", "")

    def fail(self, reason: str) -> None:
        """Marks the run as ended before its end."""
        self._status("failed", reason)

    def close(self) -> None:
        """Removes the log listener and the lock. Safe to call twice."""
        if self._log is not None:
            number, self._log = self._log, None
            logger.remove(number)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _status(self, state: str, reason: str) -> None:
        ended = None if state == "running" else datetime.now(UTC).isoformat()
        known = {"started": None} | self.known_status()
        self.write_json(STATUS, {**known, "state": state, "reason": reason, "ended": ended})

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self.finish()
                return
            logger.bind(file_only=True).opt(exception=error).error("the run failed")
            text = str(error).splitlines()
            reason = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
            try:
                self._status("stopped" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed", reason)
            except UserError as second:
                # A full disk both stops the run and keeps the status from being written; the first error must surface.
                logger.error(f"{second} (the run folder still says `running`)")
        finally:
            self.close()


def list_runs(root: Path) -> list[RunFolder]:
    """The runs under root/runs, oldest first by name; an empty list where there are none."""
    return [RunFolder.open(path.parent) for path in sorted((root / "runs").glob(f"[!.]*/{CONFIG}"))]


def _plain_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", label)
