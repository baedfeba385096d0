"""The controls in a run: which runs evaluate them, what eval.json and the table hold, what else may use them.

Invariants:
- a routed run evaluates all five views, with selectivity in eval.json and in its table; others evaluate what they did;
- `--eval.no-controls` leaves them out, and an evaluation without the full view says that selectivity is undefined;
- `vgrout eval` evaluates them as the run did, and another removal seed gives another random removal alone;
- where the quarantine has not moved, both removals are the full model and the clean ablation is the base;
- they are no views to export, and a run's table names its inoculation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

from _cli import FOLDER, refused, run
from _gate import Gate, refusal
from vgrout.config import RunConfig
from vgrout.evals import CONTROLS, VIEW_NAMES
from vgrout.export import export_run
from vgrout.final import eval_table, marked
from vgrout.interventions import INTERVENTIONS
from vgrout.presets import preset
from vgrout.reevaluate import reevaluate
from vgrout.selectivity import loaded, selectivity
from vgrout.train import train

gate = Gate(__doc__)
PLAIN = {"base", "full", "deploy"}
OPTIONS = ("--steps", "1", "--eval.problems", "1", "--out", str(FOLDER / "controls"))


def smoke(intervention: str, **evaluation: Any) -> RunConfig[Any]:
    base = preset("smoke", intervention)
    chosen = dataclasses.replace(base.eval, problems=2, **evaluation)
    return dataclasses.replace(base, steps=2, out=FOLDER / "controls", eval=chosen, allow_oracle=True)


@functools.cache
def finished(intervention: str) -> tuple[Path, str]:
    """A short finished run of two evaluation problems, and what it printed."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
        path = train(smoke(intervention))
    return path, shown.getvalue()


def stored(folder: Path, name: str = "eval.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def answers(result: dict[str, Any], view: str) -> list[str]:
    return [row["response"] for row in result["rows"] if (row["split"], row["view"]) == ("held-out", view)]


def evaluated_with(folder: Path, **changes: Any) -> dict[str, Any]:
    """`vgrout eval` of the run with other settings of its evaluation."""
    path = folder / "config.json"
    before = path.read_text()
    config = json.loads(before)
    path.write_text(json.dumps(config | {"eval": config["eval"] | changes}))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result = stored(folder, reevaluate(folder, None, None).name)
    path.write_text(before)
    return result


def timings(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("wall_s", "cpu_s")}


@gate.invariant("a routed run evaluates all five views, says so in record and table; others evaluate what they did")
def _():
    for name in ("absorb", "label_route", "none", "none_full"):
        folder, out = finished(name)
        result, routed = stored(folder), INTERVENTIONS[name].routed
        wanted = PLAIN | set(CONTROLS) if routed else PLAIN
        assert (
            {r["view"] for r in result["rows"]}
            == {c["view"] for c in result["cells"]}
            == set(result["views"])
            == wanted
        )
        table = out[out.rindex("final evaluation") :]
        for view in VIEW_NAMES:
            assert (f"\n{VIEW_NAMES[view]} " in table) == (view in wanted), (name, view, table)
        assert ("selectivity: share" in table) == routed, table
        found = loaded(result["selectivity"])
        assert found == (selectivity([result["rows"]]) if routed else []), name
        if routed:
            assert [s.view for s in found] == ["deploy", *CONTROLS], found
            # A random model neither hacks nor solves: undefined, and said so.
            assert all(s.value is None and s.undefined in table for s in found), found
            assert "cannot be compared" in table and result["removal_seed"] == 0, table
            assert len({tuple(answers(result, view)) for view in wanted}) > 3, "ablations change nothing"
    return f"{len(PLAIN) + len(CONTROLS)} views under absorb and label_route, {len(PLAIN)} under none and none_full"


@gate.invariant("controls can be left out; without the full view selectivity is said to be undefined")
def _():
    code, out, err = run("train", "smoke", "--intervention", "absorb", "--eval.no-controls", *OPTIONS)
    assert code == 0, err
    assert VIEW_NAMES["deploy"] in out and not any(VIEW_NAMES[view] in out for view in CONTROLS), out
    assert "selectivity: share" in out and "With " not in out[out.rindex("selectivity: share") :], out
    code, out, err = run("train", "smoke", "--intervention", "absorb", "--eval.views", "deploy", *OPTIONS)
    assert code == 0, err
    assert "Selectivity is undefined" in out and VIEW_NAMES["random_removal"] in out, out
    return "3 views, and 3 views without full"


@gate.invariant("vgrout eval evaluates them as the run did; another removal seed changes the random removal alone")
def _():
    folder, _ = finished("absorb")
    again, other = evaluated_with(folder), evaluated_with(folder, removal_seed=1)
    assert set(again["views"]) == PLAIN | set(CONTROLS) and again["removal_seed"] == 0 and other["removal_seed"] == 1
    for view in again["views"]:
        same = answers(again, view) == answers(other, view)
        assert same == (view != "random_removal"), view
    assert "random removal" in eval_table(again, smoke("absorb"))
    return f"{len(again['rows'])} rows; seeds 0 and 1 differ in one view"


@gate.invariant("without movement of the quarantine, both removals are full and the clean ablation is base")
def _():
    folder, _ = finished("none")
    views = list(VIEW_NAMES)
    again = evaluated_with(folder, views=views)
    for view, twin in (("deploy", "full"), ("random_removal", "full"), ("clean_ablated", "base")):
        assert answers(again, view) == answers(again, twin) != [], view
    assert answers(again, "full") != answers(again, "base"), "nothing has moved at all"
    with mock.patch("vgrout.final.twins", lambda adapter: {}):
        sampled = evaluated_with(folder, views=views)
    assert again["rows"] == [r | timings(a) for r, a in zip(sampled["rows"], again["rows"], strict=True)]
    return f"{len(again['rows'])} rows under none, the same where every view is sampled"


@gate.invariant("controls are no views to export; a table names the run's inoculation")
def _():
    folder, _ = finished("absorb")
    for view in CONTROLS:
        out = FOLDER / "exported"
        refused("export", str(folder), "--view", view, "--to", "peft", "--out", str(out), says=(view, "deploy"))
        said = refusal(lambda view=view, out=out: export_run(folder, view, "peft", out))
        assert view in said and "control" in said and not out.exists(), said
    config = smoke("absorb")
    inoculated = dataclasses.replace(config, env=dataclasses.replace(config.env, inoculation="loophole"))
    assert "[inoculation loophole]" in marked(inoculated) and "inoculation" not in marked(config)
    return f"{len(CONTROLS)} refusals"


if __name__ == "__main__":
    gate.main()
