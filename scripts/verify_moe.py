"""moe: the soft router, its two forms, its two losses and its placebos (spec 5.2).

Invariants, in fp64:
- calibration puts the mean pair logits at +-log 9, or refuses an upside-down router; w, centre, calibration by hand
- both forms equal the plain formula; at w = 0 `published` is the deploy forward and the quarantine learns nothing, at
  w = 1 the deployed block learns nothing
- GRPO's gradient of u, a, b: 0 for `detached`; for `published` 0 until the quarantine has moved, then that of the formula
  with its stop-gradients, which is that of the loss while the deployed block is at its init
- pin loss and its gradient by hand; the router's AdamW and clip by hand; neither loss touches the adapter or its clip
The placebos are verify_placebos.py's.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from _gate import Gate, refusal
from _mixed_step import MAX_NEW, STEP, VIEWS, T, advantages, distance
from _models import block_grads, largest
from _pairs import number
from _plain_route import Reference, step_by_hand
from _routers import (
    SIDES,
    Rig,
    cosine_by_hand,
    differences,
    features_by_hand,
    of_w,
    rig,
    rows_of,
    same,
)
from vgrout.directions.placebo import permuted
from vgrout.interventions.moe import MoeSettings
from vgrout.interventions.router import Router
from vgrout.policy import make_batch

gate = Gate(__doc__)
LOGIT = math.log(9)
FREE: dict[str, Any] = {"pin": 0.0, "grad_clip": 1e9, "lr": 0.0}
"""Nothing but GRPO in the router's gradient, and it stays where it is."""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scores_by_hand(router: Router, pairs: list[Any], rows: list[Any]) -> list[float]:
    """Mean cosine of each row with u, module by module, centred on the mean of all pair rows; by module: [row][k]."""
    u = dict(zip(router.names, router.u.detach().split([len(h[0]) for h in pairs]), strict=True))
    total = [0.0] * len(rows[0])
    for of_pairs, of_rows, v in zip(pairs, rows, u.values(), strict=True):
        centre = [sum(column) / len(of_pairs) for column in zip(*of_pairs, strict=True)]
        for i, h in enumerate(of_rows):
            total[i] += cosine_by_hand([x - c for x, c in zip(h, centre, strict=True)], v.tolist()) / len(u)
    return total


def scored(r: Rig) -> tuple[list[float], list[float]]:
    """Scores of the pairs and of the step's rows, from the deploy forward of the adapter as it is."""
    reference = Reference(r.adapter)
    found = [features_by_hand(reference, rows) for rows in (SIDES.rows, STEP.rollouts)]
    pairs, rows = ([f[name] for name in r.intervention.router.names] for f in found)
    return scores_by_hand(r.intervention.router, pairs, pairs), scores_by_hand(r.intervention.router, pairs, rows)


@torch.no_grad()
def unsettle(r: Rig) -> None:
    """The router away from its calibration, so that nothing holds by accident; w still spread over (0, 1)."""
    router: Router = r.intervention.router
    router.u.add_(0.1 * torch.randn(router.u.shape, generator=torch.Generator().manual_seed(1)).to(router.u))
    router.a.fill_(6.0)
    router.b.fill_(0.4)


@gate.invariant(
    "calibration puts the mean pair logits at +-log 9; w of the step's rows by hand; upside down is refused"
)
def _():
    r = rig("moe")
    router: Router = r.intervention.router
    pairs, _ = scored(r)
    high, low = sum(pairs[:6]) / 6, sum(pairs[6:]) / 6
    a, b = float(router.a.detach()), float(router.b.detach())
    worst = max(abs(a * high + b - LOGIT), abs(a * low + b + LOGIT))
    assert worst < 1e-9 and r.intervention.labels.tolist() == [1.0] * 6 + [0.0] * 6, worst
    for name, v in r.direction.act.items():
        at = router.module_of == router.names.index(name)
        assert torch.equal(router.u.detach()[at], v), "u does not start at v_act"
    unsettle(r)
    stats = r.gradient(0)
    _, rows = scored(r)
    for score, s, (d, q), view in zip(stats.scores, rows, stats.weights, VIEWS, strict=True):
        w = sigmoid(6 * s + 0.4)
        worst = max(worst, abs(number(score) - w), abs(d - 1 + w), abs(q - w * (view == "full")))
    assert worst < 1e-6, worst
    flat = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    turned = Router({"m": flat[:2].mean(0) - flat[2:].mean(0)})
    assert "upside down" in refusal(lambda: turned.calibrate(flat, torch.tensor([0.0, 0.0, 1.0, 1.0])))
    turned.calibrate(flat, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    wrong: tuple[tuple[str, Any], ...] = (("lr", -1.0), ("lr", 2.0), ("grad_clip", 0.0), ("pin", -1.0))
    for option, value in wrong:
        settings: dict[str, Any] = {option: value}
        assert option.replace("_", "-") in refusal(lambda s=settings: MoeSettings(**s))
    return f"12 pair rows, 12 rows: within {worst:.0e}"


@gate.invariant("both forms equal the plain formula, loss and gradient, in one micro-batch and in many")
def _():
    worst = 0.0
    for soft, budget in (("detached", 10_000), ("published", 30)):
        r = rig("moe", soft=soft)
        unsettle(r)
        stats = r.gradient(0, beta=0.1, token_budget=budget)
        w = [number(s) for s in stats.scores]
        assert min(w) < 0.35 and max(w) > 0.65, w
        sampled = [float(view == "full") for view in VIEWS]
        routes = [(x, 1.0, 1 - x) if soft == "published" else (s, x, 1 - x) for x, s in zip(w, sampled, strict=True)]
        outcome = step_by_hand(
            Reference(r.adapter),
            STEP.rollouts,
            routes,
            "activation" if soft == "published" else "parameter",
            advantages(routes, "block"),
            denominators=[12 * MAX_NEW] * 12,
            temperature=T,
            beta=0.1,
        )
        worst = max(worst, distance(block_grads(r.adapter), outcome.grads), abs(stats.loss - outcome.loss))
    assert worst < 1e-6, worst  # shares and advantages are fp32
    return f"2 forms: within {worst:.0e}"


@gate.invariant(
    "w = 0 is the deploy forward and teaches the quarantine nothing; w = 1 teaches the deployed block nothing"
)
def _():
    worst = 0.0
    for soft, bias in itertools.product(("detached", "published"), (-1e4, 1e4)):
        r = rig("moe", soft=soft)
        r.intervention.router.b.data.fill_(bias)
        r.gradient(0)
        silent = "quarantine" if bias < 0 else "deployed"
        norms = {block: r.adapter.block_norm(block, "grad") for block in ("deployed", "quarantine")}
        assert norms[silent] == 0 < sum(norms.values()), (soft, bias, norms)
        if soft == "detached":
            continue
        route = r.intervention.route(dataclasses.replace(rows_of(features_now(r)), views=VIEWS))
        for i, row in enumerate(STEP.rollouts):
            batch = make_batch([row], [0], device=torch.device("cpu"))
            with torch.no_grad(), r.adapter.routed(route.of([i]), batch.index):
                mine = r.policy.logps(batch)
            with torch.no_grad(), r.adapter.view("deploy" if bias < 0 else "full"):
                worst = max(worst, largest(mine, r.policy.logps(batch)))
    assert worst < 1e-13, worst
    return f"forwards equal within {worst:.0e}, the silent block's gradient exactly 0"


def features_now(r: Rig) -> dict[str, Tensor]:
    found = features_by_hand(Reference(r.adapter), STEP.rollouts)
    return {name: torch.tensor(rows, dtype=torch.float64) for name, rows in found.items()}


@torch.no_grad()
def reset(r: Rig, block: str) -> None:
    for _, t in r.adapter.trainables():
        t.value[t.parts[block]] = t.init[t.parts[block]]


@gate.invariant(
    "GRPO's gradient of u, a, b: 0 until the quarantine moves, then that of the formula, or of the loss; 0 detached"
)
def _():
    figures, worst = [], 0.0
    for at_init, source in ((None, "real"), ("deployed", "real"), ("deployed", "random_label")):
        r = rig("moe", soft="published", source=source, **FREE)
        unsettle(r)
        if at_init:
            reset(r, at_init)
        stats = r.gradient(3)
        it, reference = r.intervention, Reference(r.adapter)
        w, A = it.w.detach(), stats.advantages
        order = permuted(torch.tensor(A), VIEWS, 0, 3) if source == "random_label" else torch.arange(12)
        assert largest(w, torch.tensor([number(s) for s in stats.scores])[order]) < 1e-6
        by_w = of_w(reference, w.tolist(), A, formula=at_init is None)
        it.edit_gradients(r.adapter)  # at learning rate 0
        grads = [p.grad.clone() for p in it.router.parameters()]
        centred = it.router.flat(features_now(r)) - it.centre
        of_theta = lambda it=it, x=centred, o=order: torch.sigmoid(it.router(x))[o]  # noqa: E731
        chain = differences(of_theta, list(it.router.parameters()))
        for g, jacobian in zip(grads, chain, strict=True):
            wanted = (torch.tensor(by_w, dtype=torch.float64) @ jacobian.view(12, -1)).view_as(g)
            worst = max(worst, largest(g, wanted) / float(wanted.abs().max()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        assert norm > 1e-4 and abs(number(it.stats()["router_grad_grpo"]) - norm) < 1e-12
        if at_init is None:
            loss_says = of_w(reference, w.tolist(), A, formula=False)
            apart = max(abs(a - b) for a, b in zip(by_w, loss_says, strict=True)) / max(map(abs, loss_says))
            figures.append(f"the formula is {apart:.0%} off the loss once the deployed block has moved")
    assert worst < 1e-5, worst
    for soft, still in (("published", "quarantine"), ("detached", None)):
        r = rig("moe", soft=soft, **FREE)
        if still:
            reset(r, still)
        r.gradient(0)
        r.intervention.edit_gradients(r.adapter)
        assert r.intervention.stats()["router_grad_grpo"] == 0.0 < r.adapter.block_norm("quarantine", "grad"), soft
    return f"44 entries, 3 cases: within {worst:.0e}; {figures[0]}"


@gate.invariant("pin loss by hand and its gradient by finite differences; a dead module or feature leaves it finite")
def _():
    r = rig("moe")
    unsettle(r)
    r.gradient(0)
    it = r.intervention
    pairs, _ = scored(r)
    logits = [6 * s + 0.4 for s in pairs]
    by_hand = (
        -sum(math.log(sigmoid(x if label else -x)) for x, label in zip(logits, [1] * 6 + [0] * 6, strict=True)) / 12
    )
    wanted = differences(lambda: it.router.pin_loss(it.pairs, it.labels), list(it.router.parameters()))
    r.intervention.settings = MoeSettings(lr=0.0, grad_clip=1e9, pin=2.0)
    it.optimizer.param_groups[0]["lr"] = 0.0
    it.edit_gradients(r.adapter)
    worst = abs(number(it.stats()["pin_loss"]) - by_hand)
    for p, d in zip(it.router.parameters(), wanted, strict=True):
        worst = max(worst, largest(p.grad, 2 * d.view_as(p)))
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in it.router.parameters()))
    assert worst < 1e-8 and abs(number(it.stats()["router_grad_pin"]) - norm) < 1e-12, worst
    router = Router({"m": torch.tensor([1.0, 2.0]), "dead": torch.zeros(2)})
    rows = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    router.pin_loss(rows, torch.tensor([1.0, 0.0, 0.0])).backward()
    assert router.u.grad is not None and bool(router.u.grad.isfinite().all()) and not bool(router.u.grad[2:].any())
    by_module = [1 / 5**0.5 / 2, 0.0, 2 / 5**0.5 / 2]
    assert largest(router.score(rows), torch.tensor(by_module)) < 1e-6
    return f"loss {by_hand:.3f}, 44 entries: within {worst:.0e}"


@gate.invariant(
    "the router's AdamW and clip by hand over 3 steps, no decay; the adapter never feels the router's losses"
)
def _():
    for soft in ("detached", "published"):
        runs: list[Any] = []
        settings: dict[str, Any] = {"soft": soft, "lr": 0.05, "grad_clip": 0.3}
        for pin in (0.0, 1e4):
            r = rig("moe", pin=pin, **settings)
            r.gradient(0)
            before = block_grads(r.adapter)
            r.intervention.edit_gradients(r.adapter)
            assert same(before, block_grads(r.adapter)), "a loss of the router reached the adapter"
            clipped = r.optimizer.clip()
            runs.append((before, block_grads(r.adapter), clipped))
        assert same(runs[0], runs[1]), "the adapter's gradient or clip depends on the pin loss"
    worst, norms, r = 0.0, [], rig("moe", soft="published", lr=0.05, grad_clip=0.3)
    router = r.intervention.router
    theta = [p.detach().clone() for p in router.parameters()]
    m, v = ([torch.zeros_like(p) for p in theta] for _ in range(2))
    for n in range(3):
        r.gradient(n)
        it, parameters = r.intervention, list(router.parameters())
        of_grpo = torch.autograd.grad(it.w, parameters, it.leaf.grad, retain_graph=True)
        of_pin = torch.autograd.grad(router.pin_loss(it.pairs, it.labels), parameters)
        raw = [a + b for a, b in zip(of_grpo, of_pin, strict=True)]
        norm = math.sqrt(sum(float(x.square().sum()) for x in raw))
        g = [x * min(1.0, 0.3 / (norm + 1e-6)) for x in raw]
        norms.append(norm)
        it.edit_gradients(r.adapter)
        for k, x in enumerate(g):
            m[k], v[k] = 0.9 * m[k] + 0.1 * x, 0.999 * v[k] + 0.001 * x.square()
            hat = v[k] / (1 - 0.999 ** (n + 1))
            theta[k] -= 0.05 * m[k] / (1 - 0.9 ** (n + 1)) / (hat.sqrt() + 1e-8)
        worst = max(worst, *(largest(a, b) for a, b in zip(theta, router.parameters(), strict=True)))
    assert worst < 1e-12 and max(norms) > 0.3, (worst, norms)
    return f"44 entries, 3 steps: within {worst:.0e}; pin 0 and 1e4 leave the adapter bit-equal"


if __name__ == "__main__":
    gate.main()
