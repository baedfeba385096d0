"""`erase`, and what is measured along the direction (spec 5, 6).

- for orthonormal V, overshoot 1 and no other option: V g' <= 0 (one_sided), = 0 (no_gate), = -V g (reverse), and
  everything orthogonal to V is untouched; overshoot and preserve_magnitude by hand; bf16 axes too
- the suspicion gate by hand: pooled over modules, largest ratio first, nothing dropped at 0
- the intervention edits each module's deployed gradient by the formula, and nothing else, on both adapters
- projecting the update: -U' has no positive part along V, though Adam carries one past a projected gradient
- erase without a direction, and out of range settings, are refused
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch

from _gate import Gate, refusal
from _models import block_grads, largest
from _pairs import backward, extractor_of, number, orthonormal, randn, sides_of, stage
from vgrout.adapter.base import Adapter
from vgrout.directions.live import LiveDirection
from vgrout.directions.meter import Meter
from vgrout.directions.projection import EraseMode, project, suspicion
from vgrout.directions.subspace import Axes, Subspace
from vgrout.interventions.erase import Erase, EraseSettings
from vgrout.optim import OptimConfig, Optimizer

gate = Gate(__doc__)
SCRATCH = tempfile.TemporaryDirectory(prefix="vgrout-verify-erase-")


@gate.invariant(
    "V g' is <= 0, 0 or -V g by mode, everything orthogonal to V is untouched; overshoot and magnitude by hand"
)
def _():
    worst = 0.0
    modes: tuple[EraseMode, ...] = ("one_sided", "no_gate", "reverse")
    for seed in range(20):
        V, g = orthonormal(5, 40, seed), randn(40, seed=100 + seed)
        c = V @ g
        assert (bool((c > 0).any()) and bool((c < 0).any())) or seed
        outside = torch.eye(40, dtype=torch.float64) - V.T @ V
        for mode in modes:
            after = project(g, V, mode=mode)
            wanted = {"one_sided": c.clamp(max=0), "no_gate": 0 * c, "reverse": -c}[mode]
            worst = max(worst, largest(V @ after, wanted), largest(outside @ after, outside @ g))
            further = project(g, V, mode=mode, overshoot=1.5)
            worst = max(worst, largest(further - g, 1.5 * (after - g)))
            kept = project(g, V, mode=mode, preserve_magnitude=True)
            worst = max(worst, abs(float(kept.norm() - g.norm())), largest(kept / kept.norm(), after / after.norm()))
        keep = torch.tensor([True, False, True, False, True])
        some = project(g, V, mode="no_gate", keep=keep)
        worst = max(worst, largest(V @ some, torch.where(keep, 0.0, c)))
    inside = V.T @ torch.ones(5, dtype=torch.float64)
    assert largest(project(inside, V, preserve_magnitude=True), 0 * inside) < 1e-12, "noise of nothing was blown up"
    g32, V16 = randn(40).float(), orthonormal(5, 40).to(torch.bfloat16)
    assert largest(project(g32, V16, mode="no_gate"), project(g32, V16.float(), mode="no_gate")) == 0
    assert worst < 1e-12, worst
    return f"20 gradients x 3 modes: within {worst:.1e}"


@gate.invariant("the suspicion gate by hand: ratios within a module, the largest dropped, pooled over modules")
def _():
    eye = torch.eye(3, dtype=torch.float64)
    axes = {
        "a": Axes(eye[:2], torch.tensor([3.0, 4.0], dtype=torch.float64)),
        "b": Axes(eye, torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)),
    }
    gradients = {"a": torch.tensor([0.6, 0.8, 0.0]).double(), "b": torch.tensor([-3.0, 0.0, 4.0]).double()}
    # a: |g| 1, |S| 5: r = .6/.6 = 1, .8/.8 = 1. b: |g| 5, |S| 3: r = .6/(2/3) = .9, 0, .8/(1/3) = 2.4.
    keep = suspicion(gradients, axes, 0.25)  # the largest 1 of 5
    assert keep["a"].tolist() == [True, True] and keep["b"].tolist() == [True, True, False], keep
    assert all(bool(k.all()) for k in suspicion(gradients, axes, 0.0).values())
    keep = suspicion(gradients, axes, 0.6)  # the largest 3 of 5: both of a, which a gate per module would not drop
    assert keep["a"].tolist() == [False, False] and keep["b"].tolist() == [True, True, False], keep
    scaled = {"a": 1e-9 * gradients["a"], "b": 1e9 * gradients["b"]}
    assert all(torch.equal(k, keep[n]) for n, k in suspicion(scaled, axes, 0.6).items()), "a module's norm matters"
    return "ratios 1, 1, .9, 0, 2.4: dropped 1 and 3 of 5"


def settings_of(option: str, value: float) -> EraseSettings:
    options: dict[str, Any] = {option: value}
    return EraseSettings(**options)


def eraser(adapter: Adapter, direction: LiveDirection, **settings: Any) -> Erase:
    erase = Erase(EraseSettings(**settings), adapter, 0)
    erase.prepare(direction)
    return erase


@gate.invariant("erase edits each module's deployed gradient by the formula, and nothing else, on both adapters")
def _():
    worst = 0.0
    for kind in ("lora2r", "delta_s"):
        model, adapter, direction = stage(kind)
        skipped = next(iter(direction.subspace.axes))
        axes = {name: a for name, a in direction.subspace.axes.items() if name != skipped}
        whole, direction.subspace = direction.subspace, Subspace(axes)
        for settings in (
            {},
            {"mode": "reverse", "overshoot": 0.5},
            {"susp_drop_frac": 0.4},
            {"preserve_magnitude": True},
        ):
            backward(model, adapter)
            for p in adapter.parameters():  # something in the quarantine too, which must stay
                p.grad = p.grad + 0.01 if p.grad is not None else None
            before, vectors = block_grads(adapter), adapter.deployed([g.clone() for g in adapter.gradients()])
            eraser(adapter, direction, **settings).edit_gradients(adapter)
            after = adapter.deployed(adapter.gradients())
            keep = suspicion({n: vectors[n] for n in axes}, axes, float(settings.get("susp_drop_frac", 0)))
            for name, g in vectors.items():
                wanted = g
                if name in axes:
                    V = axes[name].V.double()
                    c = V @ g
                    take = c.clamp(min=0) if settings.get("mode") is None else 2 * c
                    wanted = g - settings.get("overshoot", 1.0) * sum(
                        t * v for t, v, k in zip(take, V, keep[name], strict=True) if k
                    )
                    if settings.get("preserve_magnitude"):
                        wanted = wanted * g.norm() / wanted.norm()
                worst = max(worst, largest(after[name], wanted) / float(g.abs().max()))
            assert torch.equal(after[skipped], vectors[skipped])
            untouched = {k: g for k, g in block_grads(adapter).items() if k[0] == "quarantine"}
            assert all(torch.equal(g, before[k]) for k, g in untouched.items())
        direction.subspace = whole
    assert worst < 1e-12, worst
    return f"2 adapters x 4 settings x 14 modules: within {worst:.1e} (relative)"


@gate.invariant("a projected update has no positive part along V; Adam carries one past a projected gradient")
def _():
    figures = []
    for kind in ("lora2r", "delta_s"):
        model, adapter, direction = stage(kind)
        shares = {}
        for what in ("gradient", "update"):
            erase, meter = eraser(adapter, direction, project=what), Meter(adapter, direction)
            optimizer = Optimizer(adapter, OptimConfig(lr=1e-3))
            for step in range(2):
                backward(model, adapter)
                if step:  # another gradient than the first, so that the moments matter
                    for i, p in enumerate(adapter.parameters()):
                        assert p.grad is not None
                        p.grad += 0.02 * randn(*p.shape, seed=i)
                with meter.edit(None):
                    erase.edit_gradients(adapter)
                optimizer.clip()
                raw = [u.clone() for u in optimizer.propose(1e-3)]
                meter.update(erase.edit_update([u.clone() for u in raw]))
            shares[what] = number(meter.values["cout_update"])
            assert (
                (meter.values["cout"] or 0.0) < 1e-7
                if what == "gradient"
                else meter.values["cout"] == meter.values["cin"]
            )
            edited = erase.edit_update([u.clone() for u in raw])
            for name, u in adapter.deployed(raw).items():
                V = direction.subspace.axes[name].V.to(u)
                c = V @ -u
                wanted = u + c.relu() @ V if what == "update" else u
                assert largest(adapter.deployed(edited)[name], wanted) < 1e-12 * float(u.abs().max()) + 1e-15, name
        assert shares["gradient"] > 0.005 and shares["update"] < 1e-7, shares
        figures.append(f"{kind} {shares['gradient']:.3f} and {shares['update']:.0e}")
    return f"cout_update after two steps, gradient and update projected: {', '.join(figures)}"


@gate.invariant("the intervention's own state brings its direction back")
def _():
    model, adapter, direction = stage("lora2r")
    state = copy.deepcopy(eraser(adapter, direction).state_dict())
    extractor = extractor_of(model, adapter, sides_of(6, seed=5), top_k=4, k_use=3, noise_floor=0.0)
    other = eraser(adapter, LiveDirection(extractor, extractor.extract()))
    assert any(not torch.equal(a.V, other.direction.subspace.axes[n].V) for n, a in direction.subspace.axes.items())
    other.load_state_dict(state)
    for name, a in direction.subspace.axes.items():
        assert torch.equal(a.V, other.direction.subspace.axes[name].V), name
    return f"{len(direction.subspace.axes)} modules"


@gate.invariant("V g' <= 0 holds with axes in bf16 within their rounding")
def _():
    worst = 0.0
    for seed in range(10):
        V, g = orthonormal(5, 400, seed).to(torch.bfloat16), randn(400, seed=50 + seed).float()
        after = project(g, V)
        worst = max(worst, float((V.float() @ after).max()) / float(g.norm()))
    assert 0 < worst < 2e-3, worst
    return f"largest positive part {worst:.1e} of the gradient"


@gate.invariant("erase without a direction, and settings out of range, are refused")
def _():
    _, adapter, _ = stage("lora2r")
    assert "--pairs" in refusal(lambda: Erase(EraseSettings(), adapter, 0).prepare(None))
    for option, value in (("overshoot", 0.0), ("overshoot", 11.0), ("susp_drop_frac", 1.0), ("susp_drop_frac", -0.1)):
        assert option.replace("_", "-") in refusal(lambda o=option, v=value: settings_of(o, v))
    return "5 refusals"


if __name__ == "__main__":
    gate.main()
