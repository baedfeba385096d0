"""Tripwires stop a run that has gone wrong, at the step and for the reason that their page says, and no other.

Invariants:
- each wire warns and stops at its thresholds, after two steps in a row, and not one step earlier; a clean step clears it
- what is undefined touches no wire; with stop off they only warn
- the anchors' log-prob is the mean over texts of torch's own cross-entropy; the texts are the same for every seed
- a state carries the wires' memory: continued from it, they stop at the same step
- a run that trips says so in one line, names the last good checkpoint, and has saved nothing since the wire was touched
- so it is with a step that has lost the format, before the mean of five steps says so
- weights and gradients that are not finite stop a run at once, and are not saved
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from _cli import run as command
from _gate import Gate
from vgrout.adapter.base import Adapter
from vgrout.arguments import parse_run
from vgrout.inputs import load_data, load_policy
from vgrout.optim import clip_norm
from vgrout.presets import preset
from vgrout.run.folder import RunFolder
from vgrout.run.states import newest_update
from vgrout.tripwires import FORMAT_STEPS, RECENT, Anchors, Tripped, TripwireConfig, Tripwires, anchor_texts

gate = Gate(__doc__)
NOTHING: dict[str, float | None] = dict.fromkeys(
    ("anchor_lp", "anchor_drop", "grad_norm", "format_rate", "share_rout", "share_keep", "sampler_gap_mean")
)
WIRES: dict[str, tuple[list[dict[str, float | None]], dict[str, float | None], dict[str, float | None]]] = {
    "anchors": (
        [{"anchor_lp": -1.0, "anchor_drop": 0.0}],
        {"anchor_lp": -5.9, "anchor_drop": 4.9},
        {"anchor_lp": -6.0, "anchor_drop": 5.0},
    ),
    "gradient": ([{"grad_norm": 0.2}] * RECENT, {"grad_norm": 19.9}, {"grad_norm": 20.1}),
    "format": (
        [{"format_rate": 0.8}] * FORMAT_STEPS + [{"format_rate": 0.0}] * 4,
        {"format_rate": 0.5},
        {"format_rate": 0.0},
    ),
    "routing": ([], {"share_rout": 0.9, "share_keep": 0.1}, {"share_rout": 0.61, "share_keep": 0.0}),
    "sampler": ([], {"sampler_gap_mean": 9e-4}, {"sampler_gap_mean": 2e-3}),
}
"""Wire -> rows before, a row that does not stop, a row that does (twice)."""


def judged(wires: Tripwires, rows: list[dict[str, float | None]]) -> int | None:
    """Position of the row that stops the run; None where none does."""
    for n, row in enumerate(rows):
        try:
            wires.check(n, NOTHING | row)
        except Tripped:
            return n
    return None


def fresh(**changes: Any) -> Tripwires:
    return Tripwires(TripwireConfig(**changes), "fp32")


@gate.invariant("each wire stops at its threshold, at the second step in a row; a clean step between clears it")
def _():
    for name, (before, fine, bad) in WIRES.items():
        n = len(before)
        assert judged(fresh(), [*before, fine, fine, fine]) is None, name
        assert judged(fresh(), [*before, bad, bad]) == n + 1, (name, judged(fresh(), [*before, bad, bad]))
        assert judged(fresh(patience=1), [*before, bad]) == n, name
        between = [*before, bad, *([fine] * (1 if name != "format" else 5)), bad]
        assert judged(fresh(), between) is None, name
        assert judged(fresh(stop=False), [*before, bad, bad, bad]) is None, name
        wires = fresh()
        judged(wires, [*before, bad])
        assert wires.suspicious == name, (name, wires.suspicious)
    assert judged(fresh(), [{}] * 50) is None
    return f"{len(WIRES)} wires"


@gate.invariant("a step that has lost the format is not saved, long before the mean of five steps stops the run")
def _():
    wires, rates = fresh(), [0.9] * 5 + [0.0] * 6
    doubts, stopped = [], False
    for rate in rates:
        stopped = judged(wires, [{"format_rate": rate}]) is not None
        doubts.append(bool(wires.suspicious))
        if stopped:
            break
    assert stopped and len(doubts) == len(rates), doubts
    assert doubts == [False] * 5 + [True] * 6, doubts
    assert judged(wires, [{"format_rate": 0.9}]) is None and not wires.suspicious, wires.suspicious
    assert not fresh(stop=False).suspicious
    return f"doubted from step 5 on, stopped at step {len(doubts) - 1}"


@gate.invariant("what the error says to do is an option of the command")
def _():
    wires = fresh(patience=1)
    try:
        wires.check(0, NOTHING | {"sampler_gap_mean": 1.0})
        raise AssertionError("the wire did not stop")
    except Tripped as error:
        option = re.search(r"--\S+", str(error))
    assert option is not None
    config = parse_run("smoke", ["--intervention", "none", option[0]], "vgrout train smoke")
    assert not config.tripwires.stop, option[0]
    return option[0]


@gate.invariant("wires continued from a saved state stop at the same step")
def _():
    for name, (before, _, bad) in WIRES.items():
        wires = fresh()
        assert judged(wires, [*before, bad]) is None
        again = fresh()
        again.load_state_dict(copy.deepcopy(wires.state_dict()))
        assert again.suspicious == name
        assert judged(again, [bad]) == 0, name
    return f"{len(WIRES)} wires"


@gate.invariant(
    "the anchors' log-prob is torch's cross-entropy over canonical solutions, and no other seed chooses others"
)
def _():
    config = preset("smoke", "absorb")
    data = load_data(config)
    loaded, policy = load_policy(config)
    for p in policy.adapter.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    texts = anchor_texts(data.train, data.draw.all("gt_only"), loaded, 3)
    other = load_data(dataclasses.replace(preset("smoke", "absorb"), seed=7))
    again = anchor_texts(other.train, other.draw.all("gt_only"), loaded, 3)
    assert [t.id for t in texts] == [t.id for t in again] and len(texts) == 3
    found = Anchors(policy, texts, token_budget=2048).logp()
    means = []
    for text in texts:
        ids = torch.tensor([text.prompt_ids + text.completion_ids])
        with torch.no_grad(), policy.adapter.view("full"):
            logits = loaded.model(input_ids=ids).logits[0].double()
        start = len(text.prompt_ids)
        means.append(-float(F.cross_entropy(logits[start - 1 : -1], ids[0, start:])))
    assert found is not None and abs(found - sum(means) / 3) < 1e-4, (found, means)
    assert Anchors(policy, [], token_budget=2048).logp() is None
    return f"{found:.4f} nats a token"


def smoke(root: Path, name: str, *options: str) -> tuple[int, str, RunFolder]:
    args = ("--steps", "6", "--checkpoint-every", "2", "--eval.problems", "2", "--eval.no-controls")
    code, _, err = command(
        "train", "smoke", "--intervention", "none", *args, "--out", str(root), "--name", name, *options
    )
    return code, err, RunFolder.open(root / "runs" / name)


@gate.invariant("a run that trips names the last good checkpoint, and saves nothing from the first touch on", slow=True)
def _():
    with tempfile.TemporaryDirectory() as name:
        drops = iter([0.0, 0.0, 0.0, 6.0, 6.0, 6.0])

        def columns(self: Tripwires, logp: float | None) -> dict[str, float | None]:
            return {"anchor_lp": -1.0, "anchor_drop": next(drops)}

        with mock.patch.object(Tripwires, "anchor_columns", columns):
            code, err, run = smoke(Path(name), "tripped")
        line = next(line for line in err.splitlines() if line.startswith("error: "))
        assert code == 2 and "anchor" in line and "update 2" in line and "--resume" in line, err
        assert newest_update(run.path) == 2 and run.status()["state"] == "failed"
        assert [p.stem for p in run.checkpoints()] == ["ckpt_update0000", "ckpt_update0002"]
        assert len(run.metrics()) == 5, len(run.metrics())
    return line.partition("error: ")[2][:90]


@gate.invariant("a gradient that is not finite is one line and the last good checkpoint, for the router too")
def _():
    for poisoned in ((1.0, float("inf")), (float("nan"),)):
        parameter = torch.nn.Parameter(torch.zeros(len(poisoned)))
        parameter.grad = torch.tensor(poisoned)
        try:
            clip_norm([parameter], 1.0)
        except FloatingPointError as error:
            said = str(error)
        else:
            raise AssertionError(f"{poisoned} was clipped")
        assert "--optim.lr" in said and "nonfinite" not in said, said
    sound = torch.nn.Parameter(torch.zeros(2))
    sound.grad = torch.tensor([3.0, 4.0])
    assert clip_norm([sound], 1.0) == 5.0 and abs(float(sound.grad.norm()) - 1) < 1e-5
    return said


@gate.invariant("weights that are not finite stop a run at once and are not saved", slow=True)
def _():
    with tempfile.TemporaryDirectory() as name:
        apply, count = Adapter.apply, iter(range(100))

        def poisoned(self: Adapter, updates: list[Tensor], *, decay: float) -> None:
            apply(self, updates, decay=decay)
            if next(count) == 3:
                self.parameters()[0].data.view(-1)[0] = float("nan")

        with mock.patch.object(Adapter, "apply", poisoned):
            code, err, run = smoke(Path(name), "poisoned", "--tripwires.anchors", "0")
        assert code == 2 and "not finite after step 3" in err and "update 2" in err, err
        assert newest_update(run.path) == 2
        saved = json.dumps([p.name for p in run.checkpoints()])
        assert "0004" not in saved, saved
    return "NaN in one weight"


if __name__ == "__main__":
    gate.main()
