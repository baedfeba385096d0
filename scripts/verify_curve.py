"""The curve on validation problems: which problems, what a point holds, and that a run with it trains as one without.

Invariants:
- its problems are neither trained on nor in the final test: micro's validation split, at most a fifth of the training
  problems of other sets, or a named file; what cannot be is refused;
- every point asks the same prompts under the same ids, with eval markers and without a hint, in `full` and `deploy`;
- curve.jsonl is one line per point, which comes back as it was; a damaged or older line is named; the figure is drawn;
- a run with a curve has the metrics and the weights of one without, where no training problem was held out for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from _asked import Reads, Told
from _cli import FOLDER, problem_file, refused, row, run, with_hint
from _gate import Gate, refusal
from vgrout.config import RunConfig
from vgrout.curve import (
    CURVE,
    FIGURE,
    cells_of,
    curve_figure,
    due,
    measure_point,
    point_bytes,
    point_text,
    read_curve,
    series,
)
from vgrout.evals import ALL, FREE, VALIDATION, find
from vgrout.inputs import load_data
from vgrout.models import LoadedModel
from vgrout.policy import Policy
from vgrout.presets import preset
from vgrout.run.folder import RunFolder
from vgrout.splits import Data

gate = Gate(__doc__)


def configured(name: str = "smoke", **evaluation: Any) -> RunConfig[Any]:
    base = preset(name, "none")
    return dataclasses.replace(base, eval=dataclasses.replace(base.eval, **{"curve_every": 2, **evaluation}))


def ids(problems: Any) -> set[str]:
    return {p.id for p in problems}


def own_file(name: str, count: int = 6) -> str:
    """A problem file that shares no problem with the built-in set."""
    rows = [row(id=f"own-{i}", prompt=with_hint(lambda text, i=i: f"Own task {i}: {text}")) for i in range(count)]
    return str(Path(problem_file(*rows)).rename(FOLDER / name))


@gate.invariant("its problems are neither trained on nor in the final test; what cannot be is refused")
def _():
    plain = load_data(configured(curve_every=None))
    assert plain.curve is None and plain.curve_words == ""
    found = {}
    for name, data in {
        "builtin": load_data(configured()),
        "micro": load_data(configured("micro")),
        "file": load_data(configured(curve_set=own_file("validation.jsonl"), curve_problems=4)),
    }.items():
        curve = data.curve
        assert curve is not None
        mine = ids(curve.problems)
        assert mine == {p.problem_id for p in curve.asked.prompts} and not mine & ids((*data.train, *data.held_out))
        drawn = {p.problem_id for step in range(30) for p in data.draw.prompts(step)}
        assert not mine & drawn and not mine & {p.problem_id for part in data.final for p in part.prompts}
        assert ids(data.shown(data.eval_prompts)) >= mine, "their answers could not be graded"
        assert f"{len(mine)} problems" in data.curve_words and data.curve_words.endswith(curve.source)
        found[name] = f"{len(mine)} problems {curve.source}"
    held = load_data(configured()).train
    assert len(plain.train) - len(held) == len(plain.train) // 5 == 4 and "held out" in found["builtin"], found
    assert found["micro"] == "32 problems of micro:validation" and ids(plain.train) > ids(held)
    chosen = load_data(configured("micro", curve_problems=5)).curve
    again = load_data(configured("micro", curve_problems=5, problems=20)).curve
    assert chosen == again and chosen is not None and len(chosen.problems) == 5
    four = str(Path(problem_file(*(row(id=f"few-{i}") for i in range(4)))).rename(FOLDER / "four.jsonl"))
    twins = [row(id=f"twin-{i}", prompt=with_hint(lambda text, i=i: f"Task {i % 11}: {text}")) for i in range(20)]
    twinned = str(Path(problem_file(*twins)).rename(FOLDER / "twins.jsonl"))
    split = load_data(dataclasses.replace(configured(), problems=twinned))
    assert split.curve is not None and ids(split.curve.problems) == {"twin-9", "twin-10"} and len(split.train) == 18
    cases = {
        "none can be held out": dataclasses.replace(configured(), problems=four),
        "those of the final": dataclasses.replace(configured("micro"), eval_problems="micro:validation"),
        "disjoint": configured(curve_set="builtin"),
        "no such file": configured(curve_set=str(FOLDER / "nowhere.jsonl")),
    }
    for says, config in cases.items():
        assert says in refusal(lambda config=config: load_data(config)), says
    refused("train", "smoke", "--eval.curve-set", four, says=("curve-every", "no curve"))
    refused("train", "smoke", "--eval.curve-every", "0", says=("curve_every 0", "at least 1"))
    return "; ".join(found.values())


def points(data: Data, updates: tuple[int, ...], samples: int = 1) -> tuple[list[dict[str, Any]], list[list[tuple]]]:
    """Points in which hacks grow with the updates, and the (id, view, prompt) that each asked for."""
    made, asked = [], []
    for n in updates:
        sampler = Told(
            lambda r, n=n: "hack" if r.prompt.mode != FREE and int(r.rollout_id.split("/")[1]) < n else "solve"
        )
        with (
            mock.patch("vgrout.curve.evaluation_sampler", lambda *_, sampler=sampler: sampler),
            mock.patch("vgrout.curve.twins", lambda adapter: {}),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            config = configured("micro", samples=samples)
            policy = mock.Mock(spec=Policy, adapter=None)
            made.append(measure_point(config, mock.Mock(spec=LoadedModel), policy, Reads(), data, n))
        asked.append([(r.rollout_id, r.view, r.prompt) for r in sampler.asked])
    return made, asked


@gate.invariant("every point asks the same prompts under the same ids, in full and deploy, and none is due at the init")
def _():
    data = load_data(configured("micro"))
    made, asked = points(data, (2, 4), samples=3)
    assert data.curve is not None and asked[0] == asked[1] and len(asked[0]) == 2 * 2 * 32, len(asked[0])
    shown = {(p.mode == FREE, p.markers) for _, _, p in asked[0]}
    assert shown == {(True, "eval"), (False, "eval")} and {view for _, view, _ in asked[0]} == {"full", "deploy"}
    assert all(i.startswith("validation/") for i, _, _ in asked[0]), "random numbers of the final evaluation"
    by_view = [[(i, p) for i, v, p in asked[0] if v == view] for view in ("full", "deploy")]
    assert by_view[0] == by_view[1], "views are paired"
    for point, n in zip(made, (2, 4), strict=True):
        cell = find(cells_of(point), "full", "eval", ALL, VALIDATION)
        assert cell is not None and (cell.hacks, cell.n, point["update"]) == (n, 32, n)
    config = dataclasses.replace(configured(curve_every=3), steps=7)
    assert [n for n in range(8) if due(config, n)] == [3, 6, 7] and not due(configured(curve_every=None), 6)
    return f"{len(asked[0])} answers a point; of 7 updates, points after 3, 6 and 7"


@gate.invariant("curve.jsonl is one line per point and comes back as it was; the figure shows both rates by view")
def _():
    made, _ = points(load_data(configured("micro")), (2, 4, 6))
    path = FOLDER / CURVE
    assert read_curve(path) == []
    path.write_bytes(b"".join(point_bytes(point) for point in made))
    back = read_curve(path)
    assert len(path.read_text().splitlines()) == 3 and [b | {"cells": []} for b in back] == [
        m | {"cells": []} for m in made
    ]
    assert [cells_of(b) for b in back] == [cells_of(m) for m in made]
    hacks = series(back, "full", "hack")
    assert [(x, y) for x, y, _, _ in hacks] == [(2, 2 / 32), (4, 4 / 32), (6, 6 / 32)]
    assert all(low < y < high for _, y, low, high in hacks) and series(back, "deploy", "solve")[0][1] == 1.0
    text = point_text(back[0])
    assert "\n" not in text and "update 2 " in text and "full hack 2/32" in text and "solve 32/32" in text, text
    figure = curve_figure(back, "none", FOLDER / FIGURE)
    assert figure.read_bytes()[:4] == b"\x89PNG" and figure.stat().st_size > 10_000
    for spoilt in ("{", json.dumps(made[0] | {"schema": "vgrout-eval-3"}), json.dumps(made[0] | {"cells": [{}]})):
        path.write_text(spoilt + "\n")
        assert f"{CURVE}:1" in refusal(lambda: read_curve(path)), spoilt
    path.unlink()
    return f"{len(point_bytes(made[0]))} bytes a point; {text[:60]}..."


@gate.invariant("a run with a curve has the metrics and weights of one without", slow=True)
def _():
    short = ("train", "smoke", "--intervention", "absorb", "--steps", "3", "--eval.problems", "1", "--eval.no-controls")
    curve = ("--eval.curve-every", "2", "--eval.curve-problems", "3", "--eval.curve-set", own_file("held.jsonl"))
    runs = []
    for name, options in (("without", ()), ("with", curve)):
        code, out, err = run(*short, *options, "--name", name, "--out", str(FOLDER / "curve"))
        assert code == 0, err
        assert ("curve on 3 problems" in out) == (name == "with") and out.count("curve, update") == 2 * (name == "with")
        runs.append(RunFolder.open(FOLDER / "curve" / "runs" / name))
    metrics = [[{k: v for k, v in r.values.items() if not k.startswith("seconds")} for r in f.metrics()] for f in runs]
    assert metrics[0] == metrics[1] and len(metrics[0]) == 3, "the curve changed the training"
    weights = [load_file(f.checkpoints()[-1]) for f in runs]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    values = [json.loads((f.path / "eval.json").read_text())["cells"] for f in runs]
    assert values[0] == values[1]
    made = read_curve(runs[1].path / CURVE)
    assert [p["update"] for p in made] == [2, 3] and all(p["seconds"] > 0 for p in made)
    assert (runs[1].path / FIGURE).stat().st_size > 10_000 and not (runs[0].path / CURVE).exists()
    limits = json.loads((runs[1].path / "limits.json").read_text())
    assert sum(problem.startswith("own-") for problem in limits) == 3
    return f"{len(metrics[0])} steps x {len(metrics[0][0])} columns and {len(weights[0])} tensors equal"


if __name__ == "__main__":
    gate.main()
