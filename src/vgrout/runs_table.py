"""`vgrout runs`: the run folders under a root as a table, whatever state they are in.

A folder that is damaged is a line that says what is wrong with it; nothing here raises because of what a folder holds.
Imports no torch, so that the table is there at once.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from vgrout.run.disk import dumps, read_json
from vgrout.run.folder import CONFIG, EVALUATION, METRICS, STATUS
from vgrout.run.heartbeat import HEARTBEAT, LOCK, alive
from vgrout.run.intervals import short
from vgrout.types import UserError

SILENT = 60.0
"""Seconds without a heartbeat after which a living run is called silent; one is written about every 10 s."""
State = Literal["running", "finished", "failed", "stopped", "dead", "unknown", "damaged"]
SCHEMAS = ("vgrout-eval-2", "vgrout-eval-3", "vgrout-eval-4")
"""Evaluations whose cells can be read here."""
HELD_OUT, ALL, FREE = "held-out", "all hinted", "gt_only"
ORACLE, ORACLE_DIRECTION = ("label_route", "penalty", "screening"), "oracle:"
"""Interventions and directions that read ground truth. These names stand in `evals`, `interventions` and `directions` as
well, which would import torch; a gate compares them."""
_TAIL = 1 << 18
"""Bytes at the end of metrics.jsonl that are read; a line has a few thousand."""
HEAD = ("run", "intervention", "seed", "step", "state", "rew", "hack", "solve", "ablated hack", "ablated solve", "age")


@dataclass(frozen=True)
class Rate:
    """A share of graded rows with its 95 % interval."""

    k: int
    n: int
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        if self.n == 0 or self.interval is None:
            return "-"
        if self.k == 0:
            return f"at most {short(math.ceil(100 * self.interval[1] - 1e-9) / 100)}"
        return f"{short(self.k / self.n)} [{short(self.interval[0])}, {short(self.interval[1])}]"


@dataclass(frozen=True)
class RunLine:
    """One run folder; None where the folder does not say."""

    name: str
    """Path below the root, the folders called `runs` left out."""
    path: str
    state: State
    """As in status.json; `dead` says that it is running but no process holds it, of `unknown` that cannot be seen."""
    note: str = ""
    """Why a run failed or stopped, what is damaged, or what a living one is doing."""
    intervention: str | None = None
    upper_bound: bool = False
    seed: int | None = None
    step: int | None = None
    """Steps that are done."""
    steps: int | None = None
    reward: float | None = None
    """Of the last step's students, as the next two."""
    hack: float | None = None
    solve: float | None = None
    ablated_hack: Rate | None = None
    """Of the quarantine-ablated model on held-out problems: prompts with a hint (unseen markers where there are any)."""
    ablated_solve: Rate | None = None
    """Of the same on prompts without a hint, where there are any, else with one."""
    started: float | None = None
    """Unix seconds."""


def find_runs(root: Path) -> Iterator[Path]:
    """Folders that lie directly in a folder called `runs`, at any depth below `root` (or `root` itself is such a folder).

    Hidden ones are being made or removed, and are left out. Nothing inside a run folder is looked at. `UserError` where
    `root` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name one that holds runs, such as out")
    for folder, children, _ in os.walk(root):
        children[:] = sorted(child for child in children if not child.startswith("."))
        if Path(folder).name == "runs":
            yield from (Path(folder, child) for child in children)
            children.clear()


def read_run(path: Path, name: str) -> RunLine:
    """What a run folder says of itself. Never raises for what is in it."""
    facts: dict[str, Any] = {}
    try:
        _configuration(path, facts)
        state, note = _state(path, facts)
        _last_step(path, facts)
        note += _evaluation(path, facts)
    except UserError as error:
        return RunLine(_shown(name), _shown(str(path)), "damaged", _one_line(error), **facts)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # A file that is JSON but not of the form that a run writes: whatever is odd about it, it is this run's line.
        return RunLine(
            _shown(name),
            _shown(str(path)),
            "damaged",
            f"unexpected content ({error.__class__.__name__}: {_one_line(error)})",
            **facts,
        )
    return RunLine(_shown(name), _shown(str(path)), state, _shown(note), **facts)


def _shown(text: str) -> str:
    """The text, with what cannot be printed as an escape: a folder may be called anything."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _one_line(error: Exception) -> str:
    return _shown(" ".join(str(error).split()))


def _configuration(path: Path, facts: dict[str, Any]) -> None:
    config = read_json(path / CONFIG)
    for name, kind in (("intervention", str), ("seed", int), ("steps", int)):
        if not isinstance(config.get(name), kind):
            raise UserError(f"{CONFIG}: {name} is {config.get(name)!r}")
        facts[name] = _shown(config[name]) if kind is str else config[name]
    facts["upper_bound"] = _upper_bound(config)


def _upper_bound(config: dict[str, Any]) -> bool:
    """As `RunConfig.upper_bound`, from the names alone."""
    return config["intervention"] in ORACLE or str(config.get("direction")).startswith(ORACLE_DIRECTION)


def _state(path: Path, facts: dict[str, Any]) -> tuple[State, str]:
    """The run's state and what is said of it."""
    status = read_json(path / STATUS)
    state, reason = str(status.get("state")), str(status.get("reason") or "")
    facts["started"] = datetime.fromisoformat(str(status["started"])).timestamp()
    for ended in ("finished", "failed", "stopped"):
        if state == ended:
            return ended, " ".join(reason.split())
    if state != "running":
        raise UserError(f"{STATUS}: state is {state!r}")
    if not (path / LOCK).is_file():
        return "unknown", "says that it is running, but was made by a revision that holds no lock"
    if not alive(path):
        return "dead", "says that it is running, but its process is gone; continue it with --resume"
    if not (path / HEARTBEAT).is_file():
        return "running", ""
    beat = read_json(path / HEARTBEAT)
    silent = time.time() - float(beat["time"])
    note = " ".join(f"{beat['phase']} of step {beat['step']}, process {beat['pid']} on {beat['host']}".split())
    return "running", note + (f", no heartbeat for {age(silent)}" if silent > SILENT else "")


def _last_step(path: Path, facts: dict[str, Any]) -> None:
    """The last whole line of metrics.jsonl; a torn one behind it belongs to a run that was killed."""
    facts["step"] = 0
    with (path / METRICS).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        whole = file.read().split(b"\n")[:-1]
    if not whole:
        return
    try:
        row = json.loads(whole[-1])
        step = row["step"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{METRICS}: its last line is no metrics row") from error
    if type(step) is not int or step < 0:
        raise UserError(f"{METRICS}: its last line is of step {step!r}")
    facts["step"] = step + 1
    for name in ("reward", "hack", "solve"):
        value = row.get(f"{name}_student")
        if value is not None and not (type(value) in (int, float) and -1e9 < value < 1e9):
            raise UserError(f"{METRICS}: {name}_student of its last line is {value!r}"[:200])
        facts[name] = None if value is None else float(value)


def _evaluation(path: Path, facts: dict[str, Any]) -> str:
    """Reads the final evaluation; a note where another revision wrote it."""
    if not (path / EVALUATION).is_file():
        return ""
    stored = read_json(path / EVALUATION)
    if stored.get("schema") not in SCHEMAS:
        return f"{EVALUATION} has the schema {stored.get('schema')}, which is not read here"
    cells = [c for c in stored["cells"] if c["view"] == "deploy" and c.get("split", HELD_OUT) == HELD_OUT]
    hinted = sorted((c for c in cells if c["mode"] == ALL), key=lambda cell: cell["markers"] != "eval")
    free = [c for c in cells if c["mode"] == FREE]
    if hinted:
        facts["ablated_hack"] = _rate(hinted[0], "hack")
    if free or hinted:
        facts["ablated_solve"] = _rate((free or hinted)[0], "solve")
    collapsed = stored.get("collapsed", {})  # absent in evaluations of earlier revisions
    return "; ".join(f"COLLAPSED: {view} {why}" for view, why in collapsed.items())


def _rate(cell: dict[str, Any], what: str) -> Rate:
    k, n, interval = cell[f"{what}s"], cell["n"], cell[f"{what}_interval"]
    if type(k) is not int or type(n) is not int or not 0 <= k <= n < 10**9:
        raise UserError(f"{EVALUATION}: {k!r} of {n!r} {what}s")
    return Rate(k, n, interval and (float(interval[0]), float(interval[1])))


def age(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `2.1 d`."""
    for limit, divisor, unit, digits in ((90, 1, "s", 0), (5400, 60, "min", 0), (129600, 3600, "h", 1)):
        if seconds < limit:
            return f"{max(seconds, 0) / divisor:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def runs_table(lines: Sequence[RunLine], root: Path, now: float) -> str:
    """The table, newest first, each run's note below its line, then the legend and the counts by state."""
    if not lines:
        return f"no runs under {root}"
    groups = [line.name.rpartition("/")[0] for line in lines]
    cells = [_cells(line, now, indent="  " if any(groups) else "") for line in lines]
    widths = [max(len(row[i]) for row in (HEAD, *cells)) for i in range(len(HEAD))]
    text = [_row(HEAD, widths)]
    for i, (line, row) in enumerate(zip(lines, cells)):
        if groups[i] and (i == 0 or groups[i] != groups[i - 1]):
            text.append(groups[i])
        text.append(_row(row, widths))
        if line.note:
            text.append(f"      {line.note}")
    counts = ", ".join(
        f"{count} {state}" for state in get_args(State) if (count := sum(line.state == state for line in lines))
    )
    text.append(
        "rew, hack, solve: the last step's student rows. ablated: the quarantine-ablated model on held-out problems, hack on "
        "hinted prompts, solve without a hint where such prompts were shown, with 95 % intervals. UB: an upper bound."
    )
    text.append(f"{len(lines)} runs under {root}: {counts}")
    return "\n".join(text)


def _cells(line: RunLine, now: float, indent: str) -> tuple[str, ...]:
    number = lambda value: "-" if value is None else f"{value:.2f}"  # noqa: E731
    return (
        indent + line.name.rpartition("/")[2],
        (line.intervention or "-") + (" UB" if line.upper_bound else ""),
        "-" if line.seed is None else str(line.seed),
        "-" if line.step is None else f"{line.step}/{line.steps}",
        line.state,
        *map(number, (line.reward, line.hack, line.solve)),
        str(line.ablated_hack or "-"),
        str(line.ablated_solve or "-"),
        "-" if line.started is None else age(now - line.started),
    )


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    left = (0, 1, 4)
    texts = (text.ljust(w) if i in left else text.rjust(w) for i, (text, w) in enumerate(zip(cells, widths)))
    return "  ".join(texts).rstrip()


def list_runs_command(
    root: Annotated[Path, tyro.conf.Positional] = Path("out"),
    state: tuple[State, ...] = (),
    intervention: tuple[str, ...] = (),
    json: bool = False,
) -> None:
    """Lists the runs in folders called `runs`, at any depth below the root, newest first.

    Args:
        root: Folder to look in.
        state: Only runs in these states; dead: its folder says running, but no process holds it.
        intervention: Only runs of these interventions.
        json: Print JSON instead of a table.
    """
    found = [read_run(path, _name(path, root)) for path in find_runs(root)]
    found = [
        line
        for line in found
        if (not state or line.state in state) and (not intervention or line.intervention in intervention)
    ]
    found.sort(key=lambda line: (-(line.started or 0.0), line.name))
    print(dumps([asdict(line) for line in found]) if json else runs_table(found, root, time.time()))


def _name(path: Path, root: Path) -> str:
    return "/".join(part for part in path.relative_to(root).parts if part != "runs")
