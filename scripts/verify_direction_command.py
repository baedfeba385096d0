"""The commands `vgrout direction extract` and `vgrout direction check`; the numbers are verify_direction_check.py.

- each rollout is scored against the directions of its own sampling view, whatever the order and size of the batches
- check writes check.json, check.txt and figure.png, the same numbers twice; the labels reach nothing but the rollouts' part
- extract writes the file that a run with the same options finds
- a user's mistake is one line, and nothing is written
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
from functools import cache
from pathlib import Path

import torch

from _cli import FOLDER, refused, run
from _gate import Gate
from _models import adapted
from _pairs import extractor_of, sides_of
from vgrout.directions.activation import activations
from vgrout.directions.gradient import row_gradients
from vgrout.directions.scoring import activation_scores, gradient_scores
from vgrout.env.demonstrations import demonstrations
from vgrout.inputs import load_data
from vgrout.presets import preset
from vgrout.run.intervals import proportion
from vgrout.types import View

gate = Gate(__doc__)


@gate.invariant("each rollout is scored against the directions of its own view, in its own place")
def _():
    model, adapter = adapted()
    extractor = extractor_of(model, adapter, sides_of(6))
    content = extractor_of(model, adapter, sides_of(4, seed=1))
    views: tuple[View, View] = ("full", "deploy")
    rows = [dataclasses.replace(r, view=views[i % 2]) for i, r in enumerate(sides_of(7, seed=2).rows)]
    done: list[int] = []
    got = gradient_scores(extractor, {"other": content}, rows, torch.ones(1, 6).double(), 2, done.append).mean
    act = activation_scores(extractor, {"other": content}, rows, torch.ones(1, 6).double(), 2).mean
    own, apart = [extractor.extract(), content.extract()], 0.0
    for i, row in enumerate(rows):
        _, alone = row_gradients(extractor.policy, [row], row.view, extractor.options, deployed=False)
        h = activations(extractor.policy, [row], "deploy", token_budget=60)
        for column, direction in ((0, own[0]), (3, own[1])):
            by_view: dict[str, float] = {v: mean_cosine(alone, direction.grad[v]) for v in views}
            assert abs(float(got[i, column]) - by_view[row.view]) < 1e-5, (i, column)
            assert abs(float(act[i, column]) - mean_cosine(h, direction.act)) < 1e-5, (i, column)
            apart = max(apart, abs(by_view["full"] - by_view["deploy"]))
    assert apart > 0.01 and sum(done) == len(rows) and got.shape == (14, 4), "the views cannot be told apart"
    return f"{len(rows)} rows; the other view's direction would differ by up to {apart:.2f}"


def mean_cosine(features: dict[str, torch.Tensor], direction: dict[str, torch.Tensor]) -> float:
    cosines = [
        torch.nn.functional.cosine_similarity(f[0].float(), direction[n].float(), dim=0) for n, f in features.items()
    ]
    return float(torch.stack(cosines).mean())


@cache
def rollouts_file() -> Path:
    """Demonstrations on the built-in problems; what is called a hack is every second row."""
    rows = []
    for problem, mode in itertools.product(load_data(preset("smoke", "none")).train[:4], ("run_tests", "gt_only")):
        for i, response in enumerate(demonstrations(problem, mode, "train", 0)):
            rows.append(
                {
                    "problem_id": problem.id,
                    "mode": mode,
                    "marker": "run_tests" if mode == "run_tests" else "",
                    "view": "deploy" if i % 3 else "full",
                    "response": response[:300],
                    "exploited": mode == "run_tests" and i % 2 == 1,
                    "gt_correct": i == 0,
                }
            )
    path = FOLDER / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check(name: str, *options: str) -> tuple[Path, str]:
    folder = FOLDER / "checks" / name
    code, out, err = run("direction", "check", "smoke", "--draws", "100", "--out-dir", str(folder), *options)
    assert code == 0, err
    return folder, out


@gate.invariant(
    "check on the smoke model: three files, exit 0 whatever the verdict, the pairs' part knows no label", slow=True
)
def _():
    path = rollouts_file()
    flipped = FOLDER / "flipped.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    flipped.write_text("".join(json.dumps(r | {"exploited": not r["exploited"]}) + "\n" for r in rows))
    content = ("--content", "placebo_style", "--rollouts")
    first, out = check("first", *content, str(path))
    second, _ = check("second", *content, str(path))
    third, _ = check("third", *content, str(flipped))
    found = [json.loads((f / "check.json").read_text()) for f in (first, second, third)]
    for f in found:
        f["result"]["heading"].pop("seconds")
    assert sorted(f.name for f in first.iterdir()) == ["check.json", "check.txt", "figure.png"]
    assert (first / "check.txt").read_text().strip() in out and found[0]["verdict"] in out
    assert (first / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert found[0]["result"] == found[1]["result"], "the same check gave other numbers"
    for part in ("held_out", "leave_one_out"):
        assert found[0]["result"][part] == found[2]["result"][part], f"{part} saw the labels"
    auroc = [f["result"]["detection"]["gradient"]["groups"]["all"]["auroc"] for f in found]
    assert abs(auroc[0] + auroc[2] - 1) < 1e-9 and auroc[0] != 0.5, auroc
    assert set(found[0]["passed"]) == {
        *("held_out_routing", "held_out_erase", "leave_one_out", "rollouts_gradient", "rollouts_activation")
    }
    assert "(no hint)" in out and "view deploy and full" in out
    return f"{proportion(sum(found[0]['passed'].values()), 5)} parts pass on {len(rows)} rows"


@gate.invariant("check without rollouts measures the pairs, and extract writes the file that a run finds")
def _():
    folder, out = check("pairs")
    plain = json.loads((folder / "check.json").read_text())
    assert set(plain["passed"]) == {"held_out_routing", "held_out_erase", "leave_one_out"} and "name some" in out
    root = FOLDER / "extracted"
    code, out, err = run("direction", "extract", "smoke", "--out", str(root))
    (default,) = (root / "directions").iterdir()
    assert code == 0 and str(default) in out and "14 modules, 0 of zero norm" in out, (out, err)
    named = root / "mine.safetensors"
    assert run("direction", "extract", "smoke", "--out", str(root), "--to", str(named))[0] == 0
    assert named.read_bytes() == default.read_bytes(), "another direction under another name"
    again = run("direction", "extract", "smoke", "--out", str(root), "--extraction.artefact", str(named))
    assert again[0] == 0, again
    with contextlib.redirect_stdout(io.StringIO()) as help_text:
        code, out, _ = run("direction", "check", "smoke", "--help")
    assert code == 0 and "--held-out" in out + help_text.getvalue()
    return f"{len(default.read_bytes()) // 1024} KiB"


@gate.invariant("a user's mistake is one line, before anything is written")
def _():
    one = FOLDER / "one.jsonl"
    rows = [json.loads(line) for line in rollouts_file().read_text().splitlines()]
    one.write_text("".join(json.dumps(r | {"exploited": False}) + "\n" for r in rows))
    there = FOLDER / "there"
    there.mkdir(exist_ok=True)
    cases: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        (("direction",), ("extract, check",)),
        (("direction", "chek", "smoke"), ("extract, check",)),
        (("direction", "check"), ("preset", "smoke")),
        (("direction", "check", "smok"), ("smok", "smoke")),
        (("direction", "check", "smoke", "--drawss", "3"), ("--drawss",)),
        (("direction", "check", "smoke", "--draws", "3"), ("--draws 3", "at least 100")),
        (("direction", "check", "smoke", "--draws", "many"), ("many",)),
        (("direction", "check", "smoke", "--held-out", "0.9"), ("--held-out", ".5")),
        (("direction", "check", "smoke", "--pairs", "nowhere"), ("nowhere",)),
        (("direction", "check", "smoke", "--content", "nowhere"), ("nowhere",)),
        (("direction", "check", "smoke", "--direction", "haar:0"), ("haar:0", "shuffled")),
        (("direction", "check", "smoke", "--extraction.artefact", "x"), ("--extraction.artefact",)),
        (("direction", "check", "smoke", "--out-dir", str(there)), (str(there), "new folder")),
        (("direction", "check", "smoke", "--out-dir", str(one / "below")), ("one.jsonl", "folder")),
        (("direction", "check", "smoke", "--rollouts", "nowhere.jsonl"), ("nowhere.jsonl",)),
        (("direction", "check", "smoke", "--rollouts", str(one)), ("one.jsonl", "0 of", "hacks")),
        (("direction", "check", "micro", "--rollouts", str(one)), ("one.jsonl", "--problems")),
        (("direction", "extract", "smoke", "--to", str(there)), (str(there), "file")),
        (("direction", "extract", "smoke", "--to", str(one / "below" / "x")), ("is no folder", "choose")),
    ]
    before = sorted(p for p in FOLDER.rglob("*"))
    for arguments, says in cases:
        refused(*arguments, says=says)
    assert sorted(p for p in FOLDER.rglob("*")) == before, "something was written"
    return f"{len(cases)} mistakes"


if __name__ == "__main__":
    gate.main()
