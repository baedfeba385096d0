"""Gate: the two growing files of a run hold what they should, and can be cut at any step.

Invariants:
- metrics refuse undeclared, missing, wrongly null, mistyped and non-finite values; undefined values are null
- rollouts are one readable frame per step, survive a torn or damaged tail, and can be cut at a step's border
- resuming cuts both logs at the same step
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest import mock

from loguru import logger

from _gate import Gate
from _runs import DECLARED, create, folder, refused, row
from vgrout.run import logs
from vgrout.run.declared import columns
from vgrout.run.folder import RunFolder
from vgrout.types import StepRow, UserError

gate = Gate(__doc__)
logger.remove()


@gate.invariant("metrics refuse undeclared, missing, wrongly null, mistyped and non-finite values; undefined is null")
def _():
    with folder() as root, create(root) as run:
        run.log_step(row(0, reward=0.0, hack_teacher=None))
        for value in (math.nan, math.inf, -math.inf):
            refused(FloatingPointError, "loss is", lambda value=value: run.log_step(row(1, loss=value)))
        refused(ValueError, "undeclared columns ['hacks']", lambda: run.log_step(row(1, hacks=1)))
        refused(ValueError, "always defined", lambda: run.log_step(row(1, lr=None)))
        refused(ValueError, "is a bool", lambda: run.log_step(StepRow(1, row(1, n_infra=True).values)))
        short = row(1)
        del short.values["kl"]
        refused(ValueError, "lacks the columns ['kl']", lambda: run.log_step(short))
        refused(ValueError, "steps must go up", lambda: run.log_step(row(0)))
        refused(RuntimeError, "opened for reading", lambda: RunFolder.open(run.path).log_step(row(1)))
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 1 and list(json.loads(lines[0])) == [column.name for column in DECLARED]
        assert '"hack_teacher": null' in lines[0] and '"reward": 0.0' in lines[0]
    duplicate = [column.name for column in DECLARED]
    assert len(set(duplicate)) == len(duplicate)
    refused(ValueError, "declared twice", lambda: columns(["a", "a"]))
    return f"{len(DECLARED)} columns, 9 refusals"


def records(step: int) -> list[dict]:
    return [{"id": f"{step}/0/{i}", "text": "\u00e4\n\u2028\ud800" * step, "tokens": list(range(50))} for i in range(4)]


def with_rollouts(path: Path) -> list[int]:
    """Steps 0, 1, 2 in a file; the byte at which each ends."""
    ends = []
    for step in range(3):
        logs.append_rollouts(path, step, records(step))
        ends.append(path.stat().st_size)
    return ends


@gate.invariant("rollouts are one readable frame per step and can be cut at every step's border")
def _():
    with folder() as root:
        path = root / "rollouts.jsonl.zst"
        ends = with_rollouts(path)
        assert [frame.end for frame in logs.read_frames(path)] == ends
        assert list(logs.read_rollouts(path)) == [{"step": s, **r} for s in range(3) for r in records(s)]
        for step in (2, 1, 0, -1):
            logs.cut_rollouts(path, step)
            assert path.stat().st_size == ([0, *ends])[step + 1]
        logs.append_rollouts(path, 7, [])
        assert not list(logs.read_rollouts(path))
        with mock.patch.object(logs, "_CHUNK", 7):
            ends = with_rollouts(path)
            assert [frame.end for frame in logs.read_frames(path)] == ends
    return f"frames end at {ends}"


@gate.invariant("a torn tail is left out with a warning at every byte; a flipped bit is never read as sound")
def _():
    with folder() as root:
        path = root / "rollouts.jsonl.zst"
        ends = with_rollouts(path)
        whole = path.read_bytes()
        warnings: list[str] = []
        sink = logger.add(lambda message: warnings.append(str(message)), level="WARNING")
        for size in range(ends[1] + 1, ends[2]):
            path.write_bytes(whole[:size])
            assert [frame.step for frame in logs.read_frames(path)] == [0, 1], size
        logger.remove(sink)
        assert len(warnings) == ends[2] - ends[1] - 1, len(warnings)
        clean = [{"step": s, **r} for s in range(3) for r in records(s)]
        errors = 0
        for place in range(ends[0], ends[1]):
            damaged = bytearray(whole)
            damaged[place] ^= 0x01
            path.write_bytes(bytes(damaged))
            read: list[dict] = []
            try:
                read.extend(logs.read_rollouts(path))
            except UserError as error:
                assert f"damaged at byte {ends[0]}" in str(error), error
                errors += 1
            assert clean[: len(read)] == read, f"byte {place} was flipped and read as if it were sound"
        assert errors > 0.9 * (ends[1] - ends[0]), errors
        logs.cut_rollouts(path, 2)
        assert path.stat().st_size == ends[0]
    return f"{len(warnings)} tears; {errors} of {ends[1] - ends[0]} flipped bytes are errors, none is read"


@gate.invariant("resuming cuts metrics and rollouts at the same step and goes on")
def _():
    with folder() as root:
        with create(root) as run:
            for step in range(5):
                run.log_rollouts(step, records(step))
                run.log_step(row(step))
            refused(ValueError, "already closed", lambda: run.log_rollouts(4, records(4)))
        whole = (run.path / "metrics.jsonl").read_bytes()
        with (run.path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 5, "rew')
        (run.path / ".eval.json.abcd.tmp").write_text("left by a kill")
        again = RunFolder.open(run.path)
        assert again.columns == DECLARED and len(again.metrics()) == 5
        refused(UserError, "metric columns differ", lambda: again.resume_at(2, DECLARED[:-1]))
        refused(UserError, "before the step 9", lambda: again.resume_at(9, DECLARED))
        again.resume_at(2, DECLARED)
        with again:
            assert again.status()["state"] == "running" and not list(run.path.glob(".*.tmp"))
            for step in (3, 4):
                again.log_rollouts(step, records(step))
                again.log_step(row(step))
        assert (run.path / "metrics.jsonl").read_bytes() == whole
        assert [r["step"] for r in logs.read_rollouts(run.path / "rollouts.jsonl.zst")] == [
            s for s in range(5) for _ in range(4)
        ]
        assert again.checkpoint_path(10).name == "ckpt_update0010.safetensors"
        again.checkpoint_path(0).write_bytes(b"")
        again.checkpoint_path("first_hack").write_bytes(b"")
        assert [path.stem for path in again.checkpoints()] == ["ckpt_update0000"]
    return "5 steps, cut after 2, continued to the same bytes"


if __name__ == "__main__":
    gate.main()
