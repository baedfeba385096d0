"""What the gates on resuming share: runs in forked children that are killed where asked, and what two runs have in common.

A child hears of every phase from the heartbeat. A `Blow` names a phase of a step, and how long after its beginning SIGKILL
(or another signal) strikes; `write` strikes between a temporary file and its rename.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers.models.qwen3.modeling_qwen3  # noqa: F401 - before forking: an import costs more than a short run
from safetensors import safe_open

import _gate  # noqa: F401 - switches the type check on before the package is imported
import vgrout.train  # noqa: F401
from vgrout import cli
from vgrout.run.folder import METRICS, ROLLOUTS
from vgrout.run.heartbeat import Heartbeat
from vgrout.run.logs import read_rollouts

EVERY = 2
"""Updates between states."""
SHORT = ("--steps", "4", "--checkpoint-every", str(EVERY), "--eval.problems", "2", "--env.workers", "1")
TIMED = ("wall_s", "cpu_s", "seconds")


@dataclass(frozen=True)
class Blow:
    """Where a run is struck down."""

    phase: str
    step: int
    after: float = 0.0
    """Seconds after the phase has begun."""
    number: int = signal.SIGKILL
    again: float | None = None
    """Seconds after which the signal is sent a second time."""


def attempt(args: Sequence[str], log: Path, blow: Blow | None = None, before: Callable[[], None] | None = None) -> int:
    """Runs `vgrout ARGS` in a forked child and returns its exit code, or minus the signal that killed it.

    `before` runs in the child first, to break something. Output is appended to `log`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _child(args, log, blow, before)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _child(args: Sequence[str], log: Path, blow: Blow | None, before: Callable[[], None] | None) -> None:
    code = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        if blow is not None:
            _arm(blow)
        if before is not None:
            before()
        try:
            cli.main(list(args))
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _arm(blow: Blow) -> None:
    def strike() -> None:
        time.sleep(blow.after)
        os.kill(os.getpid(), blow.number)
        if blow.again is not None:
            time.sleep(blow.again)
            os.kill(os.getpid(), blow.number)

    if blow.phase == "write":
        replace, count = Path.replace, iter(range(1_000_000))

        def counted(self: Path, target: Path) -> Path:
            if "state_" in Path(target).name and next(count) == blow.step:
                os.kill(os.getpid(), blow.number)
            return replace(self, target)

        Path.replace = counted  # ty: ignore[invalid-assignment]
        return
    at = Heartbeat.at

    def heard(self: Heartbeat, step: int, phase: str) -> None:
        at(self, step, phase)
        if (step, phase) == (blow.step, blow.phase):
            threading.Thread(target=strike, daemon=True).start()

    Heartbeat.at = heard


def phases(args: Sequence[str], log: Path) -> tuple[int, dict[tuple[str, int], float]]:
    """Runs to the end; the exit code, and how long each phase of each step took, but for the last, `end`."""
    record = log.with_suffix(".phases")

    def listen() -> None:
        at = Heartbeat.at

        def heard(self: Heartbeat, step: int, phase: str) -> None:
            with record.open("a") as file:
                file.write(json.dumps([phase, step, time.monotonic()]) + "\n")
            at(self, step, phase)

        Heartbeat.at = heard

    code = attempt(args, log, before=listen)
    marks = [json.loads(line) for line in record.read_text().splitlines()]
    lasted: dict[tuple[str, int], float] = {}
    for (phase, step, start), (_, _, end) in itertools.pairwise(marks):
        lasted[phase, step] = lasted.get((phase, step), 0.0) + end - start
    return code, lasted


def untimed(value: Any) -> Any:
    """The value without anything that a clock has measured."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not k.startswith(TIMED)}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def result(run: Path) -> dict[str, Any]:
    """What a run has come to: weights by checkpoint, metrics, rollouts, evaluation; timings left out."""
    weights = {p.name: _weights(p) for p in sorted((run / "checkpoints").iterdir()) if not p.name.startswith(".")}
    found: dict[str, Any] = {
        "status": json.loads((run / "status.json").read_text())["state"],
        "weights": weights,
        "metrics": [untimed(json.loads(line)) for line in (run / METRICS).read_text().splitlines()],
        "rollouts": [untimed(record) for record in read_rollouts(run / ROLLOUTS)],
        "evaluation": untimed(json.loads((run / "eval.json").read_text())),
    }
    if (run / "curve.jsonl").exists():
        found["curve"] = [untimed(json.loads(line)) for line in (run / "curve.jsonl").read_text().splitlines()]
    return found


def _weights(path: Path) -> str:
    """Hash of a checkpoint's tensors; the run's name in its metadata is no weight."""
    with safe_open(path, framework="pt") as file:
        parts = [f"{name} {file.get_tensor(name).view(torch.int16).tolist()}" for name in sorted(file.keys())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def require_equal(found: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    """AssertionError that names the part, and in a list the entry, in which two runs differ."""
    assert found.keys() == wanted.keys(), (what, sorted(found.keys() ^ wanted.keys()))
    for part, value in wanted.items():
        if found[part] == value:
            continue
        if isinstance(value, list):
            assert len(found[part]) == len(value), f"{what}: {part} has {len(found[part])} entries, not {len(value)}"
            n = next(i for i, pair in enumerate(zip(found[part], value, strict=True)) if pair[0] != pair[1])
            a, b = found[part][n], value[n]
            differing = [k for k in b if a.get(k) != b[k]]
            raise AssertionError(
                f"{what}: {part} entry {n} differs in {differing[:5]}: {[(a.get(k), b[k]) for k in differing[:2]]}"
            )
        raise AssertionError(f"{what}: {part} differs")


def moment(lasted: dict[tuple[str, int], float], phase: str, seed: int) -> Blow:
    """A random instant within a phase of a random step of a run; in three of four cases after the first state."""
    draw = random.Random(seed)
    steps = sorted(s for p, s in lasted if p == phase)
    late = [s for s in steps if s > EVERY or (s == EVERY and phase != "checkpoint")]
    step = draw.choice(late if late and seed % 4 else steps)
    return Blow(phase, step, draw.random() * lasted[phase, step])
