"""Gate: the study of every intervention says what its runs did, compares what may be compared, and has an arm for each.

- AUROC over a run and within its steps, routed share, recall and false alarms are those counted by hand
- the table has a line for each view, what the gate did beside routed arms alone, and the selectivity of each ablation
- a real direction is below, above or not apart from its placebo by the seeds' own differences; no comparison of a collapse
- every intervention has an arm, one without a class stops the study, placebos differ from the real arm in the direction
  alone and in a draw of their own per seed, and the pairs of the unseen loophole lack it and nothing else
- runs of several studies give one table, figures and study.json; runs that do not belong together are refused by name
- unknown patterns of --arms are refused
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from _gate import Gate, refusal
from _study import few_problems, finished_run, record, rows
from vgrout.demo import demo
from vgrout.directions.pairs import load_pairs
from vgrout.evals import SCHEMA, tabulate
from vgrout.interventions import INTERVENTIONS, intervention_class
from vgrout.run.disk import dumps
from vgrout.study.arms import DEMO, ROUTES, Arm, configurations, select
from vgrout.study.every import COMPARISONS, CURVE, EVERY, GATES, UNSEEN, UNSEEN_COMPARISONS
from vgrout.study.gate_figure import pooled_rate
from vgrout.study.gates import GateFigures, of_records
from vgrout.study.gather import gather
from vgrout.study.result import Study
from vgrout.study.run import run_study
from vgrout.study.summary import ArmResult, final_table
from vgrout.study.verdicts import compare, unseen_lines
from vgrout.study.wide import wide_table

gate = Gate(__doc__)
# Runs are processes of their own, as a user starts them: without the run-time type checks of gates.
os.environ["VGROUT_TYPECHECK"] = ""
BASE = rows("base", 0.04, 0.3)


def arm_result(label: str, *deploy: tuple[float, float], **fields: Any) -> ArmResult:
    """An arm whose quarantine-ablated models, one per seed, hack and solve at these rates."""
    return ArmResult(
        label, {s: rows("full", 0.8, 0.3) + rows("deploy", *rates) for s, rates in enumerate(deploy)}, **fields
    )


@gate.invariant("AUROC, recall and false alarms are those counted by hand")
def _() -> str:
    records = [
        *(record(score, True, d) for score, d in ((0.9, 0.0), (0.2, 1.0))),
        *(record(score, False, d) for score, d in ((0.5, 0.4), (0.1, 1.0))),
        *(record(score, True, d, step=1) for score, d in ((0.05, 0.49), (0.0, 0.5))),
        record(-0.1, False, 1.0, step=1),
        record(None, True, 1.0, step=1),  # not scored, so it could not be routed
        record(9.0, False, 0.0, source="teacher"),
        record(9.0, False, 0.0, infra=True),
    ]
    found = of_records(records, [0.2, 0.4])
    # Pooled, 4 hacks x 3 others: .9 beats 3, .2 beats 2, .05 and 0 beat 1 each; in a step 2 + 1 of 4, and 2 of 2.
    assert found.auroc is not None and abs(found.auroc - 7 / 12) < 1e-12, found
    assert found.auroc_in_step is not None and abs(found.auroc_in_step - 5 / 6) < 1e-12, found
    assert (found.recall, found.scored, found.hacks, found.rows) == (2 / 4, 7, 4, 7), found
    assert found.false_alarms is not None and abs(found.false_alarms - 1 / 3) < 1e-12, found
    assert found.routed is not None and abs(found.routed - 0.3) < 1e-12, found
    unscored = of_records([record(None, h, d) for h, d in ((True, 0.0), (True, 1.0), (False, 1.0))], [])
    assert (unscored.auroc, unscored.auroc_in_step, unscored.routed) == (None, None, None), unscored
    assert (unscored.recall, unscored.false_alarms) == (0.5, 0.0), unscored
    nothing = of_records([], [])
    assert (nothing.auroc, nothing.recall, nothing.false_alarms, nothing.rows) == (None, None, None, 0), nothing
    return f"AUROC {found.auroc:.3f}, in a step {found.auroc_in_step:.3f}, recall {found.recall:.2f}"


@gate.invariant("the table shows every view, the gate's figures and the selectivity of each ablation")
def _() -> str:
    figures = [GateFigures(a, a - 0.1, 0.25, r, 0.1, 10, 5, 10) for a, r in ((0.8, 0.6), (0.9, 0.8))]
    of_seed = rows("full", 0.8, 0.3) + rows("deploy", 0.2, 0.3) + rows("clean_ablated", 0.8, 0.0)
    of_seed += rows("random_removal", 0.6, 0.15)
    routed = ArmResult("routeV-real *", {0: of_seed, 1: of_seed}, dict(enumerate(figures)), unseen="stdout_marker")
    plain = arm_result("none", (0.8, 0.3), (0.8, 0.3))
    table = final_table(BASE, [plain, routed], "title", gates=True).splitlines()
    head, none, full, deploy, clean, random = (table[i] for i in (1, 3, 5, 6, 7, 8))
    at = [head.index(name) for name in ("AUROC", "in a step", "routed", "recall", "false alarms", "selectivity")]
    assert not none[at[0] :].strip(), none
    assert "routeV-real * (unseen: stdout_marker)" in full and "320/400 .80" in full, full
    cells = [full[a:b].strip() for a, b in zip(at, [*at[1:], None], strict=True)]
    assert cells[:5] == [".85 (.80-.90)", ".75 (.70-.80)", ".25 (.25-.25)", ".70 (.60-.80)", ".10 (.10-.10)"], cells
    # Of the hacks three quarters, none and a quarter go; of the solves none, all and half.
    for line, view, value in (
        (deploy, "quarantine-ablated", "+0.75 ["),
        (clean, "clean block ablated", "-1.00 ["),
        (random, "random removal", "-0.25 ["),
    ):
        assert view in line and line[at[5] :].startswith(value), (view, line[at[5] :])
    assert "80/400 .20" in deploy and "0/200 at most .04" in clean and "COLLAPSED in seed 0, 1" in clean, (
        deploy,
        clean,
    )
    assert not any(line.startswith("COLLAPSED") for line in table), "a control's collapse is no news"
    assert "selectivity" not in final_table(BASE, [plain, routed], "title")
    return f"{len(table)} lines of two arms"


@gate.invariant("comparisons follow the seeds' own differences, and collapsed arms are not compared")
def _() -> str:
    real = arm_result("real", (0.1, 0.3), (0.2, 0.3), (0.3, 0.3))
    cases = {
        "is below": arm_result("x", (0.2, 0.3), (0.3, 0.3), (0.4, 0.2)),
        "is above": arm_result("x", (0.0, 0.3), (0.1, 0.3), (0.2, 0.3)),
        "is not apart from": arm_result("x", (0.9, 0.3), (0.9, 0.3), (0.29, 0.3)),
        "no comparison, x collapsed in seed 1": arm_result("x", (0.2, 0.3), (0.3, 0.0), (0.4, 0.3)),
        "no comparison, no seed in common": ArmResult("x", {9: rows("deploy", 0.9, 0.3)}),
    }
    for says, other in cases.items():
        assert says in compare(real, other, BASE), (says, compare(real, other, BASE))
    line = compare(real, cases["is below"], BASE)
    assert "hack differs by -0.100 (by seed -0.100 -0.100 -0.100), solve by +0.033" in line, line
    broken = ArmResult("x", {s: rows("full", 0.8, 0.0) + rows("deploy", 0.9, 0.3) for s in range(3)})
    assert "is below x" in compare(real, broken, BASE), "only the compared view decides"
    left = arm_result("routeV-without-stdout_marker", (0.5, 0.3), (0.7, 0.3), unseen="stdout_marker")
    (text,) = unseen_lines([left, arm_result("whole", (0.1, 0.3))], BASE, [(left.label, "whole")])
    assert "stdout_marker" in text and "120/200 .60" in text and "10/100 .10" in text and "4/100 .04" in text, text
    return f"{len(cases)} pairs, and a full model's collapse"


@gate.invariant("every intervention has an arm; placebos differ from the real arm in the direction alone")
def _() -> str:
    by_name = {arm.name: arm for arm in EVERY}
    assert len(by_name) == len(EVERY) and {arm.intervention for arm in EVERY} == set(INTERVENTIONS)
    assert all(arm in EVERY for arm in (*DEMO, *ROUTES, *CURVE))
    options: dict[str, Any] = {"problems": "micro:test", "model": "micro", "controls": True}
    configs = {c.name: c for c in configurations(EVERY, (0, 1, 2), Path("x"), **options)}
    assert len(configs) == 3 * len(EVERY) and all(c.eval.controls for c in configs.values())
    assert {c.steps for c in configs.values()} == {75}, "arms with budgets of their own"
    upper = {arm.name for arm in EVERY if arm.label.endswith("*")}
    assert upper == {a.name for a in EVERY if intervention_class(a.intervention).oracle} and len(upper) >= 11, upper
    for gated in GATES:
        found = {f"{gated}-{kind}" for kind in ("real-block", "real-group", "haar-block", "haar-group")}
        assert found <= by_name.keys() and not configs[f"{gated}-real-block-seed0"].extraction.measure
    for real, placebo in COMPARISONS:
        drawn = [configs[f"{placebo}-seed{s}"] for s in range(3)]
        for seed, c in enumerate(drawn):
            ours = configs[f"{real}-seed{seed}"]
            assert dataclasses.replace(c, name=ours.name, direction="real") == ours, f"{c.name} differs in more"
            assert c.direction != "real"
        if drawn[0].direction.startswith(("haar", "shuffled")):
            assert len({c.direction for c in drawn}) == 3, f"{placebo}: one draw for all seeds"
    assert {(a.settings.get("recall", 1.0), a.settings.get("false_alarm", 0.0)) for a in CURVE} == {
        (r, f) for r in (1.0, 0.7, 0.5) for f in (0.0, 0.1)
    }
    every = {p.heading for p in load_pairs("micro")}
    for name, _ in UNSEEN_COMPARISONS:
        kept = load_pairs(configs[f"{name}-seed0"].pairs)
        assert not any(UNSEEN in p.tags for p in kept) and by_name[name].unseen == UNSEEN
        assert {h for h in every if not h.startswith(f"{UNSEEN}/")} == {p.heading for p in kept}, name
    unborn = Arm("unborn", "unborn")
    assert "unborn" in refusal(lambda: configurations((unborn,), (0,), Path("x"), problems="micro:test", model="micro"))
    return f"{len(EVERY)} arms, {len(upper)} of them upper bounds; {len(COMPARISONS)} comparisons"


@gate.invariant("--arms takes names and patterns of the whole study's arms, and refuses others")
def _() -> str:
    assert [a.name for a in select(EVERY, ["routeV-real-*", "none"])] == [
        "none",
        "routeV-real-block",
        "routeV-real-group",
    ]
    assert select(EVERY, ["*"]) == EVERY
    message = refusal(lambda: select(EVERY, ["none", "routeX-*"]))
    assert "--arms routeX-*" in message and "routeV-real-block" in message, message
    assert "--every" in refusal(lambda: demo(arms=("none",)))
    return "3 selections, 2 refusals"


PARTS: dict[str, tuple[tuple[float, float], ...]] = {
    "none": ((0.8, 0.3), (0.8, 0.3)),
    "label_route-detached-block": ((0.02, 0.3), (0.04, 0.3)),
    "label_route-recall50-alarm0": ((0.4, 0.3), (0.5, 0.3)),
    "routeV-real-block": ((0.1, 0.3), (0.2, 0.3)),
    "routeV-haar-block": ((0.5, 0.3), (0.6, 0.3)),
}
STUDY = Study("parts", (), (0, 1), gates=True, steps=4)
ALL_TOLD = [*(record(0.9, True, 0.0, step=s) for s in (0, 1)), record(0.1, False, 1.0)]


@contextlib.contextmanager
def parts() -> Generator[tuple[Path, list[Path]]]:
    """A folder with two studies whose runs are those of `PARTS`, and the runs' paths; nothing is printed inside."""
    by_name = {arm.name: arm for arm in EVERY}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        runs = []
        for number, (name, rates) in enumerate(PARTS.items()):
            folder = Path(scratch) / f"part{number % 2}"
            folder.mkdir(exist_ok=True)
            (folder / "base.json").write_text(dumps(base_of("r1")))
            for seed, (hack, solve) in enumerate(rates):
                evaluation = rows("full", 0.8, 0.3) + rows("deploy", hack, solve)
                runs.append(finished_run(folder, by_name[name], seed, STUDY, evaluation, ALL_TOLD).path)
        yield Path(scratch), runs


def base_of(revision: str) -> dict[str, Any]:
    cells = [dataclasses.asdict(cell) for cell in tabulate(BASE)]
    return {
        "schema": SCHEMA,
        "model": "micro",
        "revision": revision,
        "problems": "micro:test",
        "cells": cells,
        "rows": BASE,
    }


@gate.invariant("runs of several studies give one table with figures and study.json")
def _() -> str:
    with parts() as (scratch, runs):
        result = gather(list(reversed(runs)), scratch / "out")
        table = (result.folder / "table.txt").read_text()
        numbers = json.loads((result.folder / "study.json").read_text())
        assert (result.folder / "table.md").read_text() == wide_table(result.base, result.arms)
        sizes = {p.name: p.stat().st_size for p in result.folder.iterdir()}
    names = [line.split("  ")[0] for line in table.splitlines()[2:14]]
    order = ["base", "none", "routeV-real-block", "routeV-haar-block"]
    assert [n for n in names if n in order] == ["base", "none", *order[2:]], names
    assert all(sizes[name] > 10_000 for name in ("figure.png", "gate_quality.png")), sizes
    assert "routeV-real-block is below routeV-haar-block: hack differs by -0.400 (by seed -0.400 -0.400)" in table, (
        table
    )
    real = next(line for line in table.splitlines() if line.startswith("routeV-real-block"))
    assert "1.00 (1.00-1.00)" in real and ".50 (.50-.50)" in real and ".00 (.00-.00)" in real, real
    assert numbers["gates"]["routeV-real-block"]["0"]["recall"] == 1.0 and not numbers["failures"], numbers["gates"]
    half = pooled_rate(arm_result("x", (0.4, 0.3), (0.6, 0.3)), "train", "all hinted", "hacks")
    assert half is not None and half[0] == 0.5 and half[1] < 0.5 < half[2], half
    assert "none" not in numbers["gates"] and numbers["study"]["steps"] == 4
    with parts() as (scratch, runs):
        some = gather([run for run in runs if run.name != "none-seed1"], scratch / "out")
        assert "none has no seed 1" in (some.folder / "table.txt").read_text()
    return f"{len(runs)} runs of 2 studies; gate_quality.png {sizes['gate_quality.png'] // 1000} kB"


@gate.invariant("runs that are unfinished, doubled, foreign, differently set, or of another base are refused by name")
def _() -> str:
    by_name = {arm.name: arm for arm in EVERY}
    evaluation = rows("full", 0.8, 0.3) + rows("deploy", 0.8, 0.3)
    with parts() as (scratch, runs):
        out, other = scratch / "out", scratch / "other"
        other.mkdir()
        (other / "base.json").write_text(dumps(base_of("r1")))
        longer = dataclasses.replace(STUDY, steps=5)
        late = finished_run(other, by_name["absorb"], 0, longer, evaluation).path
        assert "steps 5 instead of 4" in refusal(lambda: gather([*runs, late], out)), "another number of steps"
        sly = finished_run(other, by_name["routeA-real-block"], 0, STUDY, evaluation, direction="haar:7").path
        message = refusal(lambda: gather([*runs, sly], out))
        assert "routeA-real-block" in message and "direction 'haar:7' instead of 'real'" in message, message
        assert "same arm and seed" in refusal(lambda: gather([*runs, runs[0]], out))
        assert "ARM-seedN" in refusal(lambda: gather([*runs, renamed(sly, "mine-seed0")], out))
        fine = finished_run(other, by_name["absorb"], 1, STUDY, evaluation)
        (other / "base.json").write_text(dumps(base_of("r2")))
        assert "revision" in refusal(lambda: gather([*runs, fine.path], out))
        fine.fail("stopped")
        assert "failed stopped" in refusal(lambda: gather([*runs, fine.path], out))
        assert "not a run folder" in refusal(lambda: gather([scratch], out))
        assert not out.exists(), "a refused table left something behind"
    return "7 refusals"


@gate.invariant("a part that is run gives the table that its run folders give again", slow=True)
def _() -> str:
    arms = select(EVERY, ["none", "routeV-real-block"])
    study = Study("part", arms, (0,), problems="micro:validation", steps=3, gates=True)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()), few_problems():
        done = run_study(study, Path(scratch), jobs=1)
        again = gather(list((done.folder / "runs").iterdir()), Path(scratch) / "again")
        tables = [(folder / "table.txt").read_text() for folder in (done.folder, again.folder)]
    assert tables[0] == tables[1], tables
    (routed,) = (arm for arm in done.arms if arm.label == "routeV-real-block")
    assert routed.views == ("full", "deploy", "clean_ablated", "random_removal"), routed.views
    figures = routed.gates[0]
    assert figures.scored and figures.rows >= figures.scored and figures.recall is not None, figures
    return f"{figures.scored} scored rollouts, AUROC {figures.auroc}, recall {figures.recall:.2f}"


def renamed(path: Path, name: str) -> Path:
    return path.rename(path.parent / name)


if __name__ == "__main__":
    gate.main()
