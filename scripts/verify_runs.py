"""`vgrout runs`: every run folder is a line, whatever state it is in, and no line claims what the folder does not say.

Invariants:
- a run is running exactly while a process holds its lock: killed, it is dead; without a lock file it is unknown
- figures are those of the last whole metrics line and of the quarantine-ablated held-out cells, in every schema that is read
- a damaged folder is one line that names what is wrong, never a traceback, and keeps its upper-bound mark
- runs are found at any depth, newest first; filters and JSON agree with the table
- the table needs no torch, and the names that it repeats are those of their owners
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from _cli import finished_run, refused, run
from _gate import Gate
from vgrout import evals, runs_table
from vgrout.directions.placebo import parse_source
from vgrout.interventions import INTERVENTIONS
from vgrout.presets import preset
from vgrout.run.heartbeat import Lock
from vgrout.run.intervals import wilson

gate = Gate(__doc__)
ROOT = tempfile.TemporaryDirectory(prefix="vgrout-verify-runs-")
FOLDER = Path(ROOT.name)


def cell(view: str, mode: str, markers: str, hacks: int, solves: int, n: int = 20, **more: Any) -> dict[str, Any]:
    intervals = {"hack_interval": wilson(hacks, n), "solve_interval": wilson(solves, n)}
    return {"view": view, "mode": mode, "markers": markers, "hacks": hacks, "solves": solves, "n": n} | intervals | more


CELLS = [
    cell("full", "all hinted", "eval", 19, 1),
    cell("deploy", "all hinted", "train", 18, 2),
    cell("deploy", "all hinted", "eval", 3, 4),
    cell("deploy", "run_tests", "eval", 17, 5),
    cell("deploy", "gt_only", "", 0, 6),
]


def made(path: Path, intervention: str = "none", state: str = "finished", minutes: float = 5, **files: str) -> Path:
    """A run folder of two steps; `files` replace or add files by their names with a dot for the underscore."""
    path.mkdir(parents=True)
    started = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
    rows = [{"step": i, "reward_student": 1.5 + i, "hack_student": 0.25, "solve_student": None} for i in range(2)]
    content = {
        "config.json": json.dumps(_config(intervention)),
        "status.json": json.dumps({"state": state, "reason": "", "started": started, "ended": None}),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "eval.json": json.dumps({"schema": evals.SCHEMA, "cells": [c | {"split": "held-out"} for c in CELLS]}),
    }
    for name, text in (content | {name.replace("_", "."): text for name, text in files.items()}).items():
        (path / name).write_text(text)
    return path


def _config(intervention: str) -> dict[str, Any]:
    return preset("smoke", intervention).to_dict() | {"seed": 3}


def line(path: Path) -> runs_table.RunLine:
    return runs_table.read_run(path, path.name)


@gate.invariant(
    "a run is running exactly while a process holds its lock: killed, it is dead; without one it is unknown"
)
def _():
    path = made(FOLDER / "alive" / "runs" / "a", state="running")
    assert line(path).state == "unknown", "made by a revision without a lock"
    beat = {"time": time.time(), "pid": 42, "host": "here", "step": 2, "phase": "grade"}
    (path / "heartbeat.json").write_text(json.dumps(beat))
    program = "import sys, time, pathlib\nfrom vgrout.run.heartbeat import Lock\nLock(pathlib.Path(sys.argv[1]))\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", program + "print('held', flush=True)\ntime.sleep(60)", str(path)], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        found = line(path)
        assert (found.state, found.note) == ("running", "grade of step 2, process 42 on here"), found
        (path / "heartbeat.json").write_text(json.dumps(beat | {"time": time.time() - 600}))
        assert line(path).note.endswith("no heartbeat for 10 min")
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert line(path).state == "dead" and "--resume" in line(path).note
    lock = Lock(path)  # looking at a run does not take its lock
    lock.release()
    for state in ("finished", "failed", "stopped"):
        (path / "status.json").write_text(
            json.dumps(json.loads((path / "status.json").read_text()) | {"state": state, "reason": "a\nb"})
        )
        assert (line(path).state, line(path).note) == (state, "a b")
    return "unknown, running, silent, dead, finished, failed, stopped"


@gate.invariant("figures are those of the last whole metrics line and of the quarantine-ablated held-out cells")
def _():
    found = line(path := made(FOLDER / "figures" / "runs" / "a", "label_route"))
    assert (found.step, found.steps, found.seed, found.reward, found.hack, found.solve) == (2, 6, 3, 2.5, 0.25, None)
    assert (
        str(found.ablated_hack) == ".15 [.05, .36]"
        and str(found.ablated_solve) == ".30 [.15, .52]"
        and found.upper_bound
    )
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    assert line(path).step == 2 and line(path).state == "finished"
    training = cell("deploy", "all hinted", "eval", 20, 20, split="train")
    for schema, cells in (
        ("vgrout-eval-4", [training, *CELLS]),
        ("vgrout-eval-3", CELLS),
        ("vgrout-eval-2", CELLS[:4]),
    ):
        (path / "eval.json").write_text(json.dumps({"schema": schema, "cells": cells}))
        now = line(path)
        assert now.ablated_hack == found.ablated_hack and (now.ablated_solve == found.ablated_solve) == (
            schema[-1] != "2"
        )
    (path / "eval.json").write_text(json.dumps({"schema": "vgrout-eval-1", "cells": []}))
    assert line(path).ablated_hack is None and "vgrout-eval-1" in line(path).note and line(path).state == "finished"
    (path / "metrics.jsonl").write_text("")
    (path / "eval.json").unlink()
    assert (line(path).step, line(path).reward, line(path).ablated_hack) == (0, None, None)
    return "3 schemas read, 1 named; a torn line left out"


@gate.invariant(
    "a damaged folder is one line that names what is wrong, never a traceback, and keeps its upper-bound mark"
)
def _():
    root = FOLDER / "damaged"
    config = _config("label_route")
    wrong: dict[str, list[str | None]] = {
        "config.json": [
            None,
            "{",
            "[]",
            "\x00",
            "[" * 100_000,
            *(json.dumps(config | {k: []}) for k in ("seed", "steps")),
        ],
        "status.json": [
            None,
            "",
            "{}",
            '{"state": "asleep", "started": "2026-01-01"}',
            '{"state": "finished", "started": 3}',
        ],
        "metrics.jsonl": [
            None,
            "x\n",
            "3\n",
            '{"step": "a"}\n',
            '{"step": 1, "hack_student": "a"}\n',
            "[" * 100_000 + "\n",
        ],
        "eval.json": [
            "",
            '{"schema": "vgrout-eval-4"}',
            '{"schema": "vgrout-eval-4", "cells": [{"view": "deploy"}]}',
            json.dumps({"schema": "vgrout-eval-4", "cells": [CELLS[2] | {"n": [1]}]}),
        ],
    }
    count = 0
    for name, texts in wrong.items():
        for text in texts:
            path = made(root / "runs" / f"r{count}", "label_route", minutes=count)
            (path / name).unlink()
            if text is not None:
                (path / name).write_text(text)
            found, count = line(path), count + 1
            assert found.state == "damaged" and "\n" not in found.note, (name, str(text)[:40], found)
            assert name in found.note or "unexpected content" in found.note, (name, str(text)[:40], found.note)
            assert found.upper_bound or name == "config.json", (name, str(text)[:40])
    (root / "runs" / "empty").mkdir()
    (root / "runs" / "file").write_text("")
    shutil.rmtree(root / "runs" / "r0")
    (root / "runs" / "r0" / "config.json").mkdir(parents=True)
    code, out, err = run("runs", str(root))
    assert code == 0 and "Traceback" not in out + err and f"{count + 1} damaged" in out, (out, err)
    assert f"{count + 1} runs" in out and err == ""
    return f"{count + 1} damaged folders, {count + 1} lines"


@gate.invariant(
    "odd numbers and names make a line `damaged` or are escaped, in the table and in JSON; zeros are bounds"
)
def _():
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "runs"
        good = json.dumps({"step": 3, "reward_student": 1.0, "hack_student": 0.5, "solve_student": 0.5}) + "\n"
        odd = {
            "huge": good.replace("1.0", str(10**400)),
            "nan": good.replace("1.0", "NaN"),
            "far": good.replace("3", "Infinity", 1),
            "before": good.replace("3", "-5", 1),
        }
        for what, text in odd.items():
            found = line(made(root / what, **{"metrics.jsonl": text}))
            assert found.state == "damaged" and found.note, (what, found)
            json.dumps(dataclasses.asdict(found), allow_nan=False)
        shown = line(made(root / "esc\x1b[31m"))
        assert "\x1b" not in shown.name + shown.path
    assert str(runs_table.Rate(0, 12, (0.0, 0.2425))) == "at most .25"
    return f"{len(odd)} numbers, 1 name, 1 bound"


@gate.invariant("runs are found at any depth, newest first; filters and JSON agree with the table")
def _():
    root = FOLDER / "deep"
    made(root / "runs" / "old", minutes=200)
    made(root / "study" / "x" / "runs" / "new", "absorb", minutes=1)
    made(root / "study" / "x" / "runs" / "mid", state="failed", minutes=30)
    made(root / "study" / "x" / "runs" / ".half.tmp")
    made(root / "runs" / "old" / "checkpoints" / "runs" / "inside")
    code, out, _ = run("runs", str(root))
    order = [word for word in out.split() if word in ("old", "new", "mid", "study/x", "inside")]
    assert (
        code == 0 and order == ["study/x", "new", "mid", "old"] and "3 runs" in out and "2 finished, 1 failed" in out
    ), out
    ages = [text.split("  ")[-1].strip() for text in out.splitlines()]
    assert [a for a in ages if a in ("60 s", "61 s", "30 min", "3.3 h")][-2:] == ["30 min", "3.3 h"], out
    rows = json.loads(run("runs", str(root), "--json")[1])
    assert [row["name"] for row in rows] == ["study/x/new", "study/x/mid", "old"] and Path(rows[0]["path"]).is_dir()
    assert rows[0]["ablated_hack"] == {"k": 3, "n": 20, "interval": list(wilson(3, 20) or ())}
    for options, count in (
        (("--state", "failed"), 1),
        (("--intervention", "absorb", "none"), 3),
        (("--intervention", "moe"), 0),
    ):
        assert len(json.loads(run("runs", str(root), *options, "--json")[1])) == count, options
    assert run("runs", str(root / "study" / "x" / "runs"))[1].count("finished") == 2
    (FOLDER / "nothing").mkdir()
    assert run("runs", str(FOLDER / "nothing"))[:2] == (0, f"no runs under {FOLDER / 'nothing'}\n")
    refused("runs", str(root / "none"), says=("no such folder",))
    refused("runs", str(root), "--state", "asleep", says=("--state",))
    return "3 runs in two places, 3 filters"


@gate.invariant("the table needs no torch, and the names that it repeats are those of their owners")
def _():
    program = "import sys, vgrout.runs_table\nprint([m for m in ('torch', 'transformers') if m in sys.modules])"
    heavy = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert heavy.strip() == "[]", heavy
    oracle = {name for name, cls in INTERVENTIONS.items() if cls.oracle}
    assert oracle == set(runs_table.ORACLE) and len(INTERVENTIONS) > len(oracle)
    assert parse_source(f"{runs_table.ORACLE_DIRECTION}x").upper_bound and not parse_source("haar:0").upper_bound
    assert (runs_table.ALL, runs_table.FREE, runs_table.HELD_OUT) == (evals.ALL, evals.FREE, evals.HELD_OUT)
    assert evals.SCHEMA in runs_table.SCHEMAS
    return f"{len(oracle)} upper bounds of {len(INTERVENTIONS)} interventions"


@gate.invariant("a real run's line holds its own figures", slow=True)
def _():
    path = finished_run()
    found = line(path)
    stored = json.loads((path / "eval.json").read_text())
    hacks = [r for r in stored["rows"] if r["view"] == "deploy" and r["markers"] == "eval" and r["mode"] != "gt_only"]
    hacks = [r for r in hacks if r.get("split", "held-out") == "held-out"]
    assert (found.state, found.step, found.steps) == ("finished", 1, 1), found
    bad = evals.collapsed(evals.tabulate(stored["rows"]))
    assert bad == stored["collapsed"] and found.note == "; ".join(
        f"COLLAPSED: {view} {why}" for view, why in bad.items()
    )
    stored["collapsed"] = {"deploy": "solves nothing"}
    (path / "eval.json").write_text(json.dumps(stored))
    assert line(path).note == "COLLAPSED: deploy solves nothing"
    assert found.ablated_hack is not None and found.ablated_hack.n == len(hacks)
    assert found.ablated_hack.k == sum(r["exploited"] for r in hacks)
    return str(found.ablated_hack)


if __name__ == "__main__":
    gate.main()
