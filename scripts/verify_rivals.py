"""`advantage_mod`, the published rival that shapes rewards (spec 5), and runs of it and of the ground-truth monitors.

- z by hand over the kept rows of a group: population std, its floor, masked rows without influence, 0 below two kept rows
- both shapings by hand from a plain forward of every rollout; the columns of the metrics with them
- the concept vector equals the pairs' mean difference in plain forwards, on both adapters; a Haar one reads no label
- random_label permutes the scores of kept rows within a step; the concept vector is renewed when it is due
- a state brings the concept vector back bit for bit; what is out of range, or has no direction, is refused
- each rival runs end to end (advantage_mod on both adapters), leaves the quarantine at its init, and its mark is in config and title
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _gate import Gate, refusal
from _models import largest, policy_of, step_of
from _pairs import number, sides_of
from _rivals import LAYERS, concept_by_hand, dot, f64, mod, move, plain, shaped_by_hand, stage, swap, z_by_hand
from vgrout.directions.gradient import Sides
from vgrout.directions.placebo import haar_unit
from vgrout.final import marked
from vgrout.interventions import INTERVENTIONS
from vgrout.interventions.advantage_mod import AdvantageMod, AdvantageModSettings, group_z, shape
from vgrout.observe import observe
from vgrout.presets import preset
from vgrout.run.folder import RunFolder
from vgrout.train import train

gate = Gate(__doc__)
ROOT = tempfile.TemporaryDirectory(prefix="vgrout-verify-rivals-")
RUNS = (("advantage_mod", "lora2r"), ("advantage_mod", "delta_s"), ("penalty", "lora2r"), ("screening", "delta_s"))
STEP = step_of([[3.5, 0.5, 0.0, 3.5], [0.5, 0.5, 0.5, 0.5], [3.5, 0.0, 3.5, 0.5]], labels=False, masked=((2, 2),))


def seen_of(groups: Any, policy: Any) -> Any:
    return observe(policy, groups, "hidden", token_budget=60)


@gate.invariant("z over the kept rows by hand: population std, its floor, masked rows, fewer than two kept rows")
def _():
    rng, worst, floored = random.Random(0), 0.0, 0
    for case in range(200):
        scale = rng.choice((0.01, 0.2, 5.0, 1e4))
        scores = [[rng.gauss(3, scale) for _ in range(6)] for _ in range(4)]
        keep = [[rng.random() < 0.7 for _ in range(6)], [False] * 6, [True] + [False] * 5, [True] * 6]
        wanted = f64(z_by_hand(scores, keep, 0.1))
        got = group_z(f64(scores), torch.tensor(keep), 0.1)
        worst = max(worst, largest(got, wanted))
        assert not got[1:3].any() and not got[~torch.tensor(keep)].any(), case
        floored += statistics.pstdev(scores[3]) < 0.1
        spoilt = [[s if k else 1e9 for s, k in zip(*rows, strict=True)] for rows in zip(scores, keep, strict=True)]
        again = group_z(f64(spoilt), torch.tensor(keep), 0.1)
        assert torch.equal(again, got), "a masked row's score reaches another row"
    known = group_z(f64([[0.0, 0.02], [0.0, 4.0]]), torch.ones(2, 2, dtype=torch.bool), 0.1)
    assert largest(known, f64([[-0.1, 0.1], [-1.0, 1.0]])) < 1e-12, known  # sample std: .71
    assert worst < 1e-9 and 20 < floored < 180, (worst, floored)
    return f"200 cases x 4 groups within {worst:.0e}, the floor reached in {floored}"


@gate.invariant("both shapings by hand on given z; only rows of z > 0 change, and by alpha = 2 their sign turns")
def _():
    z = f64([[-3.0, -0.1, 0.0, 1e-3, 0.5, 2.0]])
    r = f64([[3.5, 0.5, 3.5, 3.5, 0.5, 3.5]])
    worst = 0.0
    for mode in ("additive", "multiplicative"):
        for alpha in (0.5, 2.0):
            got = shape(r, z, mode, alpha)
            rows = zip(r[0].tolist(), z[0].tolist(), strict=True)
            wanted = [shaped_by_hand(a, b, mode, alpha) for a, b in rows]
            worst = max(worst, largest(got, f64([wanted])))
            assert torch.equal(got[0, :3], r[0, :3]) and bool((got[0, 3:] < r[0, 3:]).all())
            assert mode == "additive" or bool((got[0, 3:] < 0).all()) == (alpha == 2.0), (alpha, got)
    assert worst < 1e-12, worst
    return f"2 modes x 2 strengths within {worst:.0e}"


@gate.invariant("rewards, mask and columns by hand, from plain forwards of every rollout and every pair")
def _():
    worst, figures = 0.0, []
    rewards, keep = [list(row) for row in STEP.seen.rewards], [list(row) for row in STEP.seen.keep]
    for kind in ("lora2r", "delta_s"):
        hidden = [plain(kind, row) for row in STEP.rollouts]
        concept = concept_by_hand(kind, sides_of(6))
        flat = [statistics.fmean(dot(h[name], d) for name, d in concept.items()) for h in hidden]
        scores = [flat[i : i + 4] for i in (0, 4, 8)]
        for mode, floor in (("additive", 0.1), ("multiplicative", 0.1), ("additive", 1e3)):
            z = z_by_hand(scores, keep, floor)  # above every std, the floor shows the scale of s
            assert all((statistics.pstdev(row) < floor) == (floor > 1) for row in scores)
            own = mod(kind, mode=mode, std_floor=floor)
            features = seen_of(STEP.groups, policy_of(*stage(kind)))
            assert sorted(features) == [f"layer {n}" for n in LAYERS]
            got, mask = own.shape_rewards(STEP.seen, features, 0)
            wanted = [
                [shaped_by_hand(r, s, mode, 2.0) for r, s in zip(*rows, strict=True)]
                for rows in zip(rewards, z, strict=True)
            ]
            assert got.dtype == torch.float32 and mask.tolist() == keep
            worst = max(worst, largest(got.double(), f64(wanted)))
            changes = [
                w - r for ws, rs, ks in zip(wanted, rewards, keep, strict=True) for w, r, k in zip(ws, rs, ks) if k
            ]
            stats = own.stats()
            assert stats["n_shaped"] == sum(c != 0 for c in changes), (stats, changes)
            assert abs(number(stats["reward_shift"]) - statistics.fmean(changes)) < 1e-6, stats
            figures.append(f"{stats['n_shaped']:.0f}/{number(stats['reward_shift']):.3f}")
    assert worst < 1e-6, worst
    return f"2 adapters x 3 settings within {worst:.0e} (fp32 rewards); rows shaped/shift {', '.join(figures)}"


@gate.invariant("the concept vector is the mean difference of plain forwards; shuffled pairs give another one")
def _():
    worst = 0.0
    for kind in ("lora2r", "delta_s"):
        wanted, own = concept_by_hand(kind, sides_of(6)), mod(kind).concept
        assert own.keys() == wanted.keys()
        for name, d in own.items():
            worst = max(worst, largest(d, f64(wanted[name])) / float(d.abs().max()))
            assert float(d.norm()) > 0.1
    assert worst < 1e-9, worst
    swapped, whole = mod(sides=swap(sides_of(6), [0, 2, 3])).concept, mod().concept
    cosines = [float(torch.cosine_similarity(whole[n], swapped[n], dim=0)) for n in whole]
    assert max(cosines) < 0.9, cosines
    return (
        f"2 adapters x 2 layers within {worst:.0e} (relative); cosine with half of the pairs swapped {max(cosines):.2f}"
    )


@gate.invariant("a Haar concept vector knows no label: exchanging the sides of every pair changes nothing")
def _():
    sides = sides_of(7)
    one, other = mod(source="haar:4", sides=sides).concept, mod(source="haar:4", sides=swap(sides, [*range(7)])).concept

    def apart(a: dict[str, Any], b: dict[str, Any]) -> float:
        return max(largest(a[n], b[n]) / float(a[n].abs().max()) for n in a)

    # But for the last bits of fp64: a product's rounding may depend on a row's place in its batch.
    assert apart(one, other) < 1e-12, "the sides reach a Haar concept vector"
    real, turned = mod(sides=sides).concept, mod(sides=swap(sides, [*range(7)])).concept
    assert apart(real, {n: -d for n, d in turned.items()}) < 1e-12, "this test would not see the sides"
    units = {n: haar_unit(32, 4, f"concept {n}").double() for n in one}
    assert all(largest(d / d.norm(), units[n]) < 1e-6 for n, d in one.items())
    ratio = statistics.fmean(float(one[n].norm() / real[n].norm()) for n in one)
    assert 0.05 < ratio < 5
    assert any(not torch.equal(d, one[n]) for n, d in mod(source="haar:5", sides=sides).concept.items())
    return f"{len(one)} layers bit-identical; its length is {ratio:.2f} of the real one's"


@gate.invariant("random_label: the scores of kept rows change places within a step, drawn by seed and step")
def _():
    features = seen_of(STEP.groups, policy_of(*stage("lora2r")))
    real, own = mod(), mod(source="random_label")
    assert all(torch.equal(d, own.concept[n]) for n, d in real.concept.items())
    before, keep = real.shape_rewards(STEP.seen, features, 0)
    after = [own.shape_rewards(STEP.seen, features, step)[0] for step in (0, 0, 1, 2)]
    rewards = STEP.rewards
    amounts = [sorted((r - rewards)[keep].tolist()) for r in (before, *after)]
    assert all(largest(torch.tensor(a), torch.tensor(amounts[0])) < 1e-6 for a in amounts), (
        "the amounts must be the same"
    )
    assert torch.equal(after[0], after[1]) and not torch.equal(after[0], after[2])
    assert any(not torch.equal(a, before) for a in after)
    assert all(torch.equal(a[~keep], rewards[~keep]) for a in after), "a masked row was given a score"
    return f"{int(keep.sum())} kept rows, the same amounts in other places"


@gate.invariant("the concept vector is renewed every refresh_every steps, and never where that is 0")
def _():
    _, adapter = stage("lora2r")
    saved = [p.detach().clone() for p in adapter.parameters()]
    try:
        often, never = mod(every=2), mod(every=0)
        first, renewed = dict(often.concept), []
        for step in range(4):
            move(adapter, 50 + step)
            before = dict(often.concept)
            for own in (often, never):
                own.after_step(step)
            if any(not torch.equal(d, before[n]) for n, d in often.concept.items()):
                renewed.append(step)
                now = concept_by_hand("lora2r", sides_of(6))
                assert all(largest(d, f64(now[n])) < 1e-9 for n, d in often.concept.items())
        assert renewed == [1, 3] and all(torch.equal(d, first[n]) for n, d in never.concept.items()), renewed
    finally:
        with torch.no_grad():
            for p, value in zip(adapter.parameters(), saved, strict=True):
                p.copy_(value)
    return "after steps 1 and 3 of 4 at refresh_every 2"


@gate.invariant("a state brings the concept vector, and with it every shaped reward, back bit for bit")
def _():
    features = seen_of(STEP.groups, policy_of(*stage("lora2r")))
    one, other = mod(), mod(sides=sides_of(6, seed=5))
    state, wanted = one.state_dict(), one.shape_rewards(STEP.seen, features, 0)[0]
    assert not torch.equal(other.shape_rewards(STEP.seen, features, 0)[0], wanted)
    other.load_state_dict(state)
    assert torch.equal(other.shape_rewards(STEP.seen, features, 0)[0], wanted)
    kept = state["concept"]["layer 5"].tolist()
    one.concept["layer 5"] += 1
    assert state["concept"]["layer 5"].tolist() == other.concept["layer 5"].tolist() == kept, "the state is shared"
    return f"{len(state['concept'])} layers"


def settings_of(**options: Any) -> AdvantageModSettings:
    return AdvantageModSettings(**options)


@gate.invariant("no direction, pairs of one side, other layers and settings out of range are refused")
def _():
    _, adapter = stage("lora2r")
    assert "--pairs" in refusal(lambda: AdvantageMod(AdvantageModSettings(), adapter, 0).prepare(None))
    same = sides_of(3).rows[:3]
    assert "--pairs" in refusal(lambda: mod(sides=Sides((*same, *same))))
    for option, value in (("alpha", 0.0), ("alpha", math.nan), ("std_floor", 0.0), ("std_floor", math.inf)):
        said = refusal(lambda o=option, v=value: settings_of(**{o: v}))
        assert f"--advantage_mod.{option.replace('_', '-')}" in said, said
    features: dict[str, Tensor] = {"layer 5": torch.zeros(12, 32)}
    try:
        mod().shape_rewards(STEP.seen, features, 0)
    except ValueError as error:
        return f"6 refusals; {error}"
    raise AssertionError("a layer is missing, and nothing was said")


@gate.invariant("each rival runs end to end, moves the deployed block alone and is marked")
def _():
    figures = []
    for name, kind in RUNS:
        config = preset("smoke", name, kind)
        config = dataclasses.replace(
            config,
            steps=2,
            out=Path(ROOT.name),
            name=f"{name}-{kind}",
            pairs="core#run_tests/lambda,core#run_tests/no-cases",
            allow_oracle=INTERVENTIONS[name].oracle,
            eval=dataclasses.replace(config.eval, problems=2, views=("deploy",)),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            run = RunFolder.open(train(config))  # refuses a quarantine that has moved
        rows = [row.values for row in run.metrics()]
        assert len(rows) == 2 and any((row["grad_norm"] or 0) > 0 for row in rows)
        assert all(row["n_shaped"] is not None for row in rows), rows
        assert (rows[0]["reward_shift"] is None) == (name == "screening")
        assert run.read_json("config.json")["intervention"] == name
        assert ("UPPER BOUND" in marked(config)) == (name != "advantage_mod")
        figures.append(f"{name}@{kind} {sum(number(row['n_shaped']) for row in rows):.0f}")
    return "rows shaped in 2 steps: " + ", ".join(figures)


if __name__ == "__main__":
    gate.main()
