"""What damage a run folder survives, and what it refuses before anything is changed.

Invariants:
- damage that would lose finished steps is refused with the folder unchanged; other damage is mended
- so is a state that is whole and another version's, or another run's
- a setting that was edited in config.json is refused by name, or taken over with --override; edited again, refused again
- an override that changes inputs stays in force after a kill
- a full disk in the checkpoint, a metrics file cut short and a damaged newest state lose nothing
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from _gate import Gate
from _kill import Blow, attempt, require_equal, result
from _resuming import arguments, folder, log, refusal, resume, unbroken
from vgrout.run import disk
from vgrout.run.states import STATES

gate = Gate(__doc__)


def damaged(name: str) -> Path:
    """A copy, under this name, of a run that was killed in the update of step 3, with states of updates 0 and 2."""
    if not folder("survivor").exists():
        code = attempt(arguments("absorb", "survivor"), log("survivor"), Blow("update", 3, 0.01))
        assert code == -signal.SIGKILL, log("survivor").read_text()[-2000:]
    shutil.copytree(folder("survivor"), folder(name))
    log(name).touch()
    return folder(name)


def cut_short(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@gate.invariant("where finished steps would be lost, a run is refused and nothing in its folder is changed", slow=True)
def _():
    accidents: dict[str, Callable[[Path], object]] = {
        "no states": lambda run: shutil.rmtree(run / STATES),
        "torn states": lambda run: [cut_short(path, 1000) for path in (run / STATES).iterdir()],
        "no columns": lambda run: (run / "columns.json").unlink(),
        "config": lambda run: cut_short(run / "config.json", 100),
    }
    for what, damage in accidents.items():
        run = damaged(what.replace(" ", "-"))
        damage(run)
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        said = refusal(run.name)
        after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        assert before == after, (what, said, sorted(str(p) for p in before.keys() ^ after.keys()))
    return f"{len(accidents)} accidents"


def restated(run: Path, without: str = "", **entries: Any) -> None:
    """Every state with these entries instead of its own, or without one, under the name that fits."""
    for path in list((run / STATES).iterdir()):
        content = torch.load(path, weights_only=True) | entries
        content.pop(without, None)
        raw = io.BytesIO()
        torch.save(content, raw)
        path.unlink()
        digest = hashlib.sha256(raw.getvalue()).hexdigest()[:16]
        (run / STATES / f"{path.name.rpartition('_')[0]}_{digest}.pt").write_bytes(raw.getvalue())


@gate.invariant(
    "a whole state of another version or another run is refused by name, nothing in the folder changed", slow=True
)
def _():
    said = []
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("format", {"format": "vgrout-state-0"}, "vgrout-state-0"),
        ("before formats", {"without": "format"}, "code revision"),
        ("lacking", {"without": "tripwires"}, "lacks tripwires"),
        ("owner", {"owner": "2020-01-01T00:00:00+00:00"}, "another run wrote it"),
        ("updates", {"updates": 7}, "after 7 updates"),
    )
    for what, entries, expected in cases:
        run = damaged(f"other-{what.replace(' ', '-')}")
        restated(run, **entries)
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        said.append(refusal(run.name))
        assert expected in said[-1] and "state_update" in said[-1], (what, said[-1])
        assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}, what
    run = damaged("restated")
    restated(run)
    assert resume("restated") == 0, "states written anew, with nothing changed, are not taken: the refusals say nothing"
    return f"{len(said)} refusals"


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(bytes(content))


@gate.invariant(
    "damaged files that hold no training state are mended or passed over; the end is the unbroken one's", slow=True
)
def _():
    run = damaged("mended")
    cut_short(run / "curve.jsonl", 90)
    cut_short(run / "environment.json", 50)
    (run / "status.json").write_text("{}")
    (run / "heartbeat.json").write_text("[1, 2]")
    (run / "limits.json").unlink()
    (run / "resumes.jsonl").write_text('{"torn')
    (run / STATES / "state_update0003_0123456789abcdef.pt").write_text("garbage")
    assert resume("mended") == 0, log("mended").read_text()[-2000:]
    require_equal(result(run), unbroken("absorb")[0], "mended")
    assert [json.loads(line)["updates"] for line in (run / "resumes.jsonl").read_text().splitlines()] == [2]
    for what, damage in {"torn": lambda path: cut_short(path, 20), "no": lambda path: path.unlink()}.items():
        run = damaged(f"{what}-status")
        damage(run / "status.json")
        assert resume(run.name) == 0, log(run.name).read_text()[-2000:]
        require_equal(result(run), unbroken("absorb")[0], run.name)
    for what, damage in {"flipped": lambda path: _flip(path, 40), "gone": lambda path: path.unlink()}.items():
        run = damaged(what)  # only the init's state has all its rollouts, which are none: the steps are made again
        damage(run / "rollouts.jsonl.zst")
        assert resume(what) == 0 and "older state" in log(what).read_text(), log(what).read_text()[-2000:]
        require_equal(result(run), unbroken("absorb")[0], what)
    return "7 files; status torn and gone; rollouts flipped and gone"


@gate.invariant(
    "an override that changes inputs is in force again after a kill; Adam's settings are those that were asked for",
    slow=True,
)
def _():
    run = damaged("overridden")
    options = ("--eval.problems", "1", "--optim.betas", "0.5", "0.6", "--override")
    assert attempt(["train", "--resume", str(run), *options], log(run.name), Blow("update", 3, 0.01)) == -signal.SIGKILL
    assert resume(run.name) == 0, log(run.name).read_text()[-2000:]
    stored = json.loads((run / "config.json").read_text())
    assert stored["optim"]["betas"] == [0.5, 0.6] and stored["eval"]["problems"] == 1, stored["optim"]
    assert result(run)["weights"] != unbroken("absorb")[0]["weights"], "the override has changed nothing"
    return "held-out problems and betas"


def edit(run: Path, section: str, setting: str, value: Any) -> None:
    config = json.loads((run / "config.json").read_text())
    config[section][setting] = value
    (run / "config.json").write_text(json.dumps(config))


@gate.invariant("settings edited in config.json are refused by name, or taken over and recorded", slow=True)
def _():
    run = damaged("edited")
    edit(run, "optim", "lr", 0.5)
    said = refusal("edited")
    assert "optim.lr was 0.001, is 0.5" in said and "--override" in said and said.count(" was ") == 2, said
    edit(run, "adapter", "rank", 8)
    said = refusal("edited", "--override")
    assert "adapter.rank was 4, is 8" in said and "--override" not in said, said
    edit(run, "adapter", "rank", 4)
    (run / "resumes.jsonl").write_text("[1]\nno json\n")
    killed = attempt(["train", "--resume", str(run), "--override"], log("edited"), Blow("update", 3, 0.01))
    assert killed == -signal.SIGKILL, log("edited").read_text()[-2000:]
    assert "optim.lr" in (run / "resumes.jsonl").read_text()
    edit(run, "optim", "lr", 0.25)  # not the value that was taken over
    said = refusal("edited")
    assert "optim.lr was 0.001, is 0.25" in said, said
    edit(run, "optim", "lr", 0.5)
    assert resume("edited") == 0, log("edited").read_text()[-2000:]
    assert max(row["lr"] for row in result(run)["metrics"]) > 0.01
    return "a learning rate taken over, a rank refused"


def full_disk() -> None:
    """In the child: the disk is full from the second state on."""
    write, count = disk.write_atomic, iter(range(100))

    def failing(path: Path, data: Any) -> None:
        if path.name.startswith("state_") and next(count) > 0:
            with disk.disk_errors(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    sys.modules["vgrout.run.states"].write_atomic = failing  # ty: ignore[missing-attribute]


@gate.invariant("a full disk in the checkpoint, metrics cut short and a damaged state lose nothing", slow=True)
def _():
    wanted = unbroken("moe")[0]
    code = attempt(arguments("moe", "full"), log("full"), before=full_disk)
    text = log("full").read_text()
    assert code == 2 and "No space left" in text and "--resume" in text and "Traceback" not in text, (
        code,
        text[-1500:],
    )
    assert resume("full") == 0
    require_equal(result(folder("full")), wanted, "full disk")

    assert attempt(arguments("moe", "cut"), log("cut"), Blow("update", 3, 0.01)) == -signal.SIGKILL
    metrics = folder("cut") / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:100])
    assert resume("cut") == 0 and "restored" in log("cut").read_text()
    require_equal(result(folder("cut")), wanted, "metrics cut short")

    assert attempt(arguments("moe", "torn"), log("torn"), Blow("update", 3, 0.01)) == -signal.SIGKILL
    newest = max((folder("torn") / STATES).iterdir())
    newest.write_bytes(newest.read_bytes()[:-10])
    assert resume("torn") == 0 and "left out" in log("torn").read_text()
    require_equal(result(folder("torn")), wanted, "damaged state")
    return "3 accidents"


if __name__ == "__main__":
    gate.main()
