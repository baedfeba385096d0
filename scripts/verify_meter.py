"""How much of a gradient lies along the direction (spec 6).

- cin, its cosine and nulls, cout, cout_update and the fired shares by hand; under `none` cin == cout; nulls without a
  direction, never 0
- the quarantine's share of an update by hand on both adapters; Adam moves a block that is sent a thousandth as far as another
- the teacher rows' and the student rows' gradients add up to the whole, and cin_t, cin_s are of them
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from _gate import Gate
from _models import alone, block_grads, largest
from _pairs import STEP, backward, number, orthonormal, randn, stage
from vgrout.directions.meter import MEASURES, Meter
from vgrout.directions.subspace import Axes
from vgrout.interventions.none import NoIntervention
from vgrout.measure import gradient_norms, update_share
from vgrout.optim import OptimConfig, Optimizer

gate = Gate(__doc__)


@gate.invariant(
    "cin, cosine, nulls, cout and fired shares by hand; under none cin == cout; undefined without a direction"
)
def _():
    model, adapter, direction = stage("lora2r")
    meter = Meter(adapter, direction)
    backward(model, adapter)
    with meter.edit(None):
        NoIntervention(NoIntervention.Settings(), adapter, 0).edit_gradients(adapter)
    own = meter.values
    rows = []
    for module in adapter.modules:
        r = module.rank
        g = torch.cat([module.A.grad[:r].flatten(), module.B.grad[:, :r].flatten()])  # ty: ignore
        V = direction.subspace.axes[module.name].V.double()
        c = [float(v @ g) for v in V]
        norm, k, d = float(g.norm()), len(V), len(g)
        relu = sum(max(x, 0.0) ** 2 for x in c) ** 0.5
        rows.append((relu / norm, c[0] / norm, (k / (2 * d)) ** 0.5, d**-0.5, sum(x > 0 for x in c), k))
    n = len(rows)
    wanted = {
        "cin": sum(r[0] for r in rows) / n,
        "cin_cos": sum(r[1] for r in rows) / n,
        "cin_null": sum(r[2] for r in rows) / n,
        "cin_cos_null": sum(r[3] for r in rows) / n,
        "frac_fired": sum(r[4] for r in rows) / sum(r[5] for r in rows),
        "frac_modules": sum(r[4] > 0 for r in rows) / n,
    }
    for name, value in wanted.items():
        assert abs(number(own[name]) - value) < 1e-12, (name, own[name], value)
    assert own["cin"] == own["cout"] == own["cin_s"] and own["cin_t"] is None and number(own["cin"]) > 0
    adapter.zero_grad()
    with meter.edit(None):
        pass
    assert meter.values["cin"] is None and meter.values["frac_fired"] is None, "a zero gradient has no share"
    none = Meter(adapter, None)
    with none.edit(None):
        pass
    assert none.update([]) == [] and set(none.values) == set(MEASURES) and not any(none.values.values())
    assert all(value is None for value in none.values.values())
    random = [float(Axes(orthonormal(3, 300, s), torch.ones(3)).V.matmul(randn(300, seed=900 + s)).relu().norm()
                    / randn(300, seed=900 + s).norm()) for s in range(400)]  # fmt: skip
    mean = sum(x * x for x in random) / 400
    assert abs(mean - 3 / 600) < 0.0008, mean  # the null is the root mean square
    return ", ".join(f"{name} {value:.3f}" for name, value in wanted.items())


@gate.invariant("the teacher rows' and the student rows' gradients add up to the whole; cin_s and cin_t are of them")
def _():
    model, adapter, direction = stage("lora2r")
    groups = tuple(
        dataclasses.replace(
            g,
            rollouts=tuple(
                dataclasses.replace(r, source="teacher" if i < 2 else "student", view="full" if i < 2 else r.view)
                for i, r in enumerate(g.rollouts)
            ),
        )
        for g in STEP.groups
    )
    plain = backward(model, adapter, groups)
    whole = [g.clone() for g in adapter.gradients()]
    assert plain.teacher_gradient is None
    stats = backward(model, adapter, groups, by_source=True)
    error = max(largest(a, b) for a, b in zip(whole, adapter.gradients(), strict=True))
    teacher = stats.teacher_gradient
    A = (STEP.rewards - STEP.rewards.mean(1, keepdim=True)).flatten().tolist()
    by_hand: dict[Any, Tensor] = {}
    for r, a in zip((r for g in groups for r in g.rollouts), A, strict=True):
        if r.source == "teacher":
            for key, g in alone(model, adapter, r, 0.8).d_logp.items():
                by_hand[key] = by_hand.get(key, 0 * g) - a * g / (2 * 4 * 12)
    adapter.zero_grad()
    for p, g in zip(adapter.parameters(), teacher, strict=True):
        p.grad = g
    for key, g in block_grads(adapter).items():
        if key[0] == "deployed":
            error = max(error, largest(g, by_hand[key]) / float(by_hand[key].abs().max()))
    assert error < 1e-6, error
    meter = Meter(adapter, direction)
    for p, g in zip(adapter.parameters(), whole, strict=True):
        p.grad = g
    with meter.edit(teacher):
        pass
    alone_t, alone_s = Meter(adapter, direction), Meter(adapter, direction)
    for m, part in ((alone_t, teacher), (alone_s, [w - t for w, t in zip(whole, teacher, strict=True)])):
        for p, g in zip(adapter.parameters(), part, strict=True):
            p.grad = g
        with m.edit(None):
            pass
    assert abs(number(meter.values["cin_t"]) - number(alone_t.values["cin"])) < 1e-12
    assert abs(number(meter.values["cin_s"]) - number(alone_s.values["cin"])) < 1e-12
    assert len({meter.values["cin"], meter.values["cin_t"], meter.values["cin_s"]}) == 3
    assert backward(model, adapter, by_source=True).teacher_gradient is None, "there is no teacher row"
    return f"sum and teacher part within {error:.1e}; cin {meter.values['cin']:.3f}, s {meter.values['cin_s']:.3f}, t {meter.values['cin_t']:.3f}"


@gate.invariant(
    "the quarantine's share of gradient and update by hand; a thousandth of the gradient is half of Adam's update"
)
def _():
    for kind in ("lora2r", "delta_s"):
        _, adapter, _ = stage(kind)
        tensors = [randn(*p.shape, seed=i) for i, p in enumerate(adapter.parameters())]
        total = {"deployed": 0.0, "quarantine": 0.0}
        for (_, t), x in zip(adapter.trainables(), tensors, strict=True):
            for block, part in t.parts.items():
                total[block] += sum(float(v) ** 2 for v in x[part].flatten())
        d, q = (total[block] ** 0.5 for block in ("deployed", "quarantine"))
        assert abs(update_share(adapter, tensors)["qmass_update"] - q / (d + q)) < 1e-12
    _, adapter, _ = stage("lora2r")
    assert update_share(adapter, [torch.zeros_like(p) for p in adapter.parameters()]) == {}
    for i, (_, t) in enumerate(adapter.trainables()):
        t.value.grad = randn(*t.value.shape, seed=i).to(t.value)
        t.value.grad[t.parts["quarantine"]] *= 1e-3
    gradient = gradient_norms(adapter)["qmass"]
    update = update_share(adapter, Optimizer(adapter, OptimConfig(eps=1e-12)).propose(1e-3))["qmass_update"]
    assert gradient < 2e-3 and abs(update - 0.5) < 0.02, (gradient, update)
    return f"gradient {gradient:.4f}, update {update:.3f}"


if __name__ == "__main__":
    gate.main()
