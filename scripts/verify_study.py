"""Gate: a study's table says what its rows say, a collapse is flagged, and runs side by side neither hide nor lose a failure.

- the final table's counts are those of the rows, by arm, view and marker family, with the seeds' range
- the wide table has one line for each arm, in Markdown
- a model that stops answering, or stops solving, is flagged as collapsed; one that merely stops hacking is not
- arms differ only by what they name, those of the demo evaluate no control ablations, and upper bounds are marked
- a failing run is reported with its log while the others finish, and an interrupt leaves no process behind
- the same seed gives the identical table, with two runs at a time or one
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from _gate import Gate
from _study import few_problems, rows
from vgrout.config import RunConfig
from vgrout.evals import collapsed, tabulate
from vgrout.parallel import run_side_by_side
from vgrout.run.folder import RunFolder
from vgrout.run.intervals import short, wilson
from vgrout.run.live import LiveTable
from vgrout.study.arms import DEMO, QUICK, ROUTES, Arm, configurations
from vgrout.study.gates import GateFigures
from vgrout.study.run import Study, run_study
from vgrout.study.summary import ArmResult, final_table, mode_table
from vgrout.study.wide import wide_table
from vgrout.types import UserError

gate = Gate(__doc__)
# Runs are processes of their own, as a user starts them: without the run-time type checks of gates.
os.environ["VGROUT_TYPECHECK"] = ""


@gate.invariant("the final table's counts are those of the rows")
def _() -> str:
    arm = ArmResult(
        "route *", {s: rows("full", 0.75, 0.25) + rows("deploy", hack, 0.3) for s, hack in ((0, 0.02), (1, 0.06))}
    )
    base = rows("base", 0.04, 0.3)
    table = final_table(base, [arm], "title").splitlines()
    assert "8/200 .04" in table[2] and "30/100 .30" in table[2], table[2]
    assert table[3].startswith("route *") and "300/400 .75" in table[3] and "50/200 .25" in table[3], table[3]
    assert "16/400 .04" in table[4] and "60/200 .30" in table[4] and "0.02-0.06, 0.30-0.30" in table[4], table[4]
    assert "upper bound" in table[5] and "are a cluster" in table[6] and len(table) == 7, table
    modes = mode_table(base, [arm], "train", "modes").splitlines()
    assert "4/100 .04" in modes[2] and "150/200 .75" in modes[3] and "8/200 .04" in modes[4], modes
    # Both seeds and both modes answer a problem alike, so 400 answers are worth 100.
    assert f"300/400 .75 [{', '.join(map(short, wilson(75, 100) or ()))}]" in table[3], table[3]
    return "base, full and ablated lines of two seeds"


@gate.invariant("the wide table has a line for each arm: rates by view and by seed, what the gate did, collapses")
def _() -> str:
    base = rows("base", 0.04, 0.3)
    of_seed = rows("full", 0.8, 0.3) + rows("clean_ablated", 0.8, 0.0) + rows("random_removal", 0.6, 0.15)
    by_seed = {s: of_seed + rows("deploy", hack, 0.3) for s, hack in ((0, 0.1), (1, 0.3))}
    gates = {s: GateFigures(a, a - 0.1, 0.25, r, None, 10, 5, 10) for s, a, r in ((0, 0.8, 0.6), (1, 0.9, 0.8))}
    arms = [
        ArmResult("routed *", by_seed, gates, unseen="sentinel"),
        ArmResult("dead", {2: rows("full", 0.8, 0.3) + rows("deploy", 0.1, 0.0)}),
    ]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in wide_table(base, arms).splitlines()]
    head, rule, first, routed, dead = table
    assert {len(line) for line in table} == {len(head)} and set(rule) == {"---"}, table
    assert first[:3] == ["base", ".04 / .30", ""], first
    assert routed[:5] == ["routed * (unseen: sentinel)", ".80 / .30", ".20 / .30", ".80 / .00", ".60 / .15"], routed
    assert routed[5:10] == [".10 / .30; .30 / .30", ".85 (.75)", ".25", ".70", "-"], routed
    assert routed[10].startswith("+0.75 [") and routed[11] == "", routed
    assert dead[1:7] == [".80 / .30", ".10 / .00", "", "", "", ""] and dead[-1] == "quarantine-ablated 2", dead
    return f"{len(head)} columns, {len(table) - 2} lines"


@gate.invariant("a collapse is flagged, a cure is not")
def _() -> str:
    base = rows("base", 0.04, 0.3)
    cases = {
        "empty answers": (rows("deploy", 0.0, 0.0, formatted=0.1), True),
        "no solving": (rows("deploy", 0.0, 0.02), True),
        "a third of the base's solving": (rows("deploy", 0.06, 0.10), True),
        "silent where hints are": ([r | {"format_ok": r["mode"] == "gt_only"} for r in rows("deploy", 0.0, 0.3)], True),
        "cured": (rows("deploy", 0.0, 0.3), False),
        "somewhat worse": (rows("deploy", 0.02, 0.2), False),
    }
    for name, (found, expected) in cases.items():
        assert bool(collapsed(tabulate(base + found))) == expected, name
        table = final_table(base, [ArmResult("arm", {0: found + rows("full", 0.5, 0.3)})], "title")
        assert ("COLLAPSED" in table) == expected, (name, table)
        assert ("is no result" in table) == expected, (name, table)
    return ", ".join(cases)


@gate.invariant("arms differ only by what they name, the demo's evaluate no controls, and upper bounds are marked")
def _() -> str:
    configs = configurations((*DEMO, ROUTES[3]), (0, 1), Path("x"), problems="micro:test", model="micro")
    assert len({c.name for c in configs}) == len(configs) == 2 * (len(DEMO) + 1)
    assert not any(c.eval.controls for c in configs) and {c.eval.views for c in configs} == {("full", "deploy")}
    wanted = {(c, b) for c in ("detached", "zeroed") for b in ("block", "group")}
    routes = [c for c in configs if c.intervention == "label_route" and c.seed == 0]
    assert {(c.settings.clean, c.grpo.advantage_baseline) for c in routes} == wanted
    first = next(c for c in routes if c.name == ROUTES[0].run_names([0])[0])
    for c in routes:
        plain = dataclasses.replace(
            c,
            name=first.name,
            settings=dataclasses.replace(c.settings, clean="detached", mask="parameter"),
            grpo=dataclasses.replace(c.grpo, advantage_baseline="block"),
        )
        assert plain == first, f"{c.name} differs in more than clean route, mask and baseline"
        assert (c.settings.clean == "zeroed") == (c.settings.mask == "activation"), c.settings
    assert [arm.label for arm in DEMO if arm.label.endswith("*")] == [arm.label for arm in ROUTES[:3]]
    assert len(DEMO) == 5 and len(QUICK) == 2
    shown = {(a.settings["clean"], a.grpo["advantage_baseline"]) for a in DEMO if a.intervention == "label_route"}
    assert shown == {("detached", "block"), ("detached", "group"), ("zeroed", "block")}
    return f"{len(DEMO)} arms of the demo"


@gate.invariant("a failing run is reported with its log; the others finish, and the table is of those", slow=True)
def _() -> str:
    def spoiled(arms: Sequence[Arm], seeds: Sequence[int], out: Path, **options: Any) -> list[RunConfig[Any]]:
        bad, good = configurations(arms, seeds, out, **options)
        return [dataclasses.replace(bad, model=dataclasses.replace(bad.model, name="missing/model")), good]

    study = Study("gate", QUICK, (0,), problems="micro:validation", steps=1)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()) as shown:
        with mock.patch("vgrout.study.run.configurations", spoiled), few_problems():
            try:
                run_study(study, Path(scratch), jobs=2)
            except UserError as error:
                message = str(error)
            else:
                raise AssertionError("the failed run was not reported")
        (folder,) = Path(scratch).iterdir()
        table = (folder / "table.txt").read_text()
        numbers = json.loads((folder / "study.json").read_text())
        assert (folder / "figure.png").stat().st_size > 10_000
        log = Path(numbers["failures"][0].rpartition("whole log: ")[2].rstrip(")"))
        assert "missing/model" in log.read_text()
        assert RunFolder.open(folder / "runs" / "none-seed0").status()["state"] == "finished"
    assert message.startswith("1 of 2 runs failed; ") and "missing/model" in message and "\n" not in message, message
    assert "FAILED, so not in this table" in table and "label_route" not in table.split("FAILED")[0], table
    assert [line for line in table.splitlines() if line.startswith("none ")], table
    assert "FAILED" in shown.getvalue()
    return message[:60]


@gate.invariant("an interrupt leaves no process behind", slow=True)
def _() -> str:
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        configs = brief(Path(scratch), steps=500)
        threading.Timer(12.0, interrupt).start()
        started = time.monotonic()
        try:
            run_side_by_side(configs, jobs=2, title="interrupted")
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("500 steps ended before the interrupt")
        left = [p for p in multiprocessing.active_children() if p.is_alive()]
        assert not left, left
    return f"stopped after {time.monotonic() - started:.0f} s"


@gate.invariant("the same seed gives the identical table, with two runs at a time or one", slow=True)
def _() -> str:
    tables = []
    study = Study("gate", QUICK, (0,), problems="micro:validation", steps=4)
    for jobs in (2, 1):
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()), few_problems():
            result = run_study(study, Path(scratch), jobs=jobs)
            tables.append((result.folder / "table.txt").read_text())
            assert (result.folder / "figure.png").stat().st_size > 10_000
            for name in ("base.json", "study.json"):
                assert (result.folder / name).stat().st_size > 100
    assert len(tables) == 2 and tables[0] == tables[1], tables
    return f"{len(tables[0].splitlines())} lines"


@gate.invariant("in a log the live table writes a line when a run's state changes")
def _() -> str:
    lines: list[str] = []
    with LiveTable("t", ("run", "state", "step"), terminal=False, every=1000.0, write=lines.append) as live:
        for state in ("waiting", "running", "running", "finished"):
            live.update([("a", state, "1"), ("b", "waiting", "0")])
    assert [line.split()[:2] for line in lines[2:]] == [["a", "running"], ["a", "finished"]], lines
    return f"{len(lines)} lines"


def brief(out: Path, steps: int) -> list[Any]:
    """Two runs of the micro preset on few problems."""
    arms = (Arm("none", "none"), Arm("absorb", "absorb"))
    found = configurations(arms, (0,), out, problems="micro:validation", model="micro", steps=steps)
    return [dataclasses.replace(c, eval=dataclasses.replace(c.eval, problems=8)) for c in found]


def interrupt() -> None:
    import _thread

    _thread.interrupt_main()


if __name__ == "__main__":
    gate.main()
