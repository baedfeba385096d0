"""The update's `forward` strategy: masked forward, ratio to the sampling view, clip, against one rollout at a time.

Invariants, in fp64 where a gradient is compared; the step holds every label (mid, hack, clean) sampled in either view:
- gradient, loss, KL and clipped tokens of every legal cell equal the formula's, with either baseline, KL and length
  normalisation, for label_route's settings and for soft routes;
- zeroed clean rows sampled in full have the ratio exp(deploy now - full then); some of their tokens are clipped, in
  both directions, and clipped tokens carry no gradient;
- rows of the deploy view: hack and mid are run again in full against their sampling view and teach the quarantine,
  which the one-pass strategy cannot do; clean ones keep ratio 1 where they are detached or zeroed;
- only rows whose value the route changes cost a second pass; the route's data picks the strategy;
- values as sampled with parameter masks, forced through this strategy, equal the one-pass strategy;
- micro-batches, checkpointing and folding change nothing;
- the block baseline by hand, in both strategies;
- the clip fraction is a declared column, null where nothing was trained.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from typing import Any

import torch

from _gate import Gate
from _mixed_step import (
    LABEL_ROUTE,
    LABELS,
    MAX_NEW,
    REWARDS,
    SOFT,
    STEP,
    VIEWS,
    by_hand,
    cells,
    distance,
    in_view,
    labelled,
    only,
    run,
    settings,
    stage,
)
from _models import Step, block_grads, largest, step_of
from vgrout.adapter.route import Route
from vgrout.env.verdicts import Verdicts
from vgrout.interventions.label_route import LabelRouteSettings
from vgrout.measure import COLUMNS, step_row
from vgrout.types import Verdict

gate = Gate(__doc__)
OPTIONS = [("block", 0.0, 10_000, False), ("group", 0.5, 60, True)]
"""(baseline, beta, token budget, length normalisation)"""


@gate.invariant("gradient, loss, KL and clipped tokens of every cell equal the formula's, rollout by rollout")
def _():
    worst = loss_error = 0.0
    clipped = []
    for (name, route, numbers, kind), options in itertools.product(cells(), OPTIONS):
        config = settings(*options)
        expected = by_hand(numbers, kind, config)
        stats, got = run(route, config)
        worst = max(worst, distance(got, expected.grads))
        loss_error = max(loss_error, abs(stats.loss - expected.loss) / abs(expected.loss))
        assert stats.n_tokens == expected.tokens and stats.n_clipped == expected.clipped, name
        assert config.beta == 0 or abs(stats.kl_sum - expected.kl) < 1e-5 * expected.kl, name
        clipped.append(stats.n_clipped)
    # Advantages and token weights are fp32 (1e-7 relative); everything else is fp64.
    assert worst < 1e-6 and loss_error < 1e-5 and min(clipped) > 0, (worst, loss_error, clipped)
    return f"{len(clipped)} cases within {worst:.1e} (loss {loss_error:.1e}); {min(clipped)} to {max(clipped)} clipped"


@gate.invariant("zeroed clean rows sampled in full: ratio, loss, gradient and clip written out with two views")
def _():
    _, adapter, _ = stage()
    step = step_of([[3.0, 0.0, 2.0, 1.0, 0.5, 0.0]])
    full = tuple(dataclasses.replace(r, view="full") for r in step.rollouts)
    step = Step(
        (dataclasses.replace(step.groups[0], rollouts=full),), dataclasses.replace(step.seen, labels=((False,) * 6,))
    )
    route = LabelRouteSettings(clean="zeroed")
    stats, got = run(route, dataclasses.replace(settings(), prompts_per_step=1), step)
    adapter.zero_grad()
    loss, high, low, tokens = torch.zeros((), dtype=torch.float64), 0, 0, 0
    for rollout, reward in zip(full, step.seen.rewards[0], strict=True):
        A = reward - statistics.fmean(step.seen.rewards[0])
        new, old = in_view(rollout, "deploy"), in_view(rollout, "full").detach()
        for rho in (new - old).exp():
            over, under = bool(rho > 1.2) and A > 0, bool(rho < 0.8) and A < 0
            high, low, tokens = high + over, low + under, tokens + 1
            loss = loss - (1.2 * A if over else 0.8 * A if under else rho * A) / (6 * MAX_NEW)
    loss.backward()
    loss = float(loss.detach())
    error = distance(got, block_grads(adapter))
    assert error < 1e-6 and abs(stats.loss - loss) < 1e-6, (error, stats.loss, loss)
    assert high > 0 and low > 0 and stats.n_clipped == high + low < tokens == stats.n_tokens, (high, low, tokens)
    assert not any(g.any() for (block, _), g in got.items() if block == "quarantine")
    unclipped, _ = run(route, dataclasses.replace(settings(), prompts_per_step=1, clip=1e9), step)
    assert unclipped.n_clipped == 0
    return f"{high} tokens clipped above and {low} below of {tokens}; gradient within {error:.1e}"


@gate.invariant("rows of the deploy view: hack and mid are run again in full, against their sampling view")
def _():
    _, adapter, _ = stage()
    worst = 0.0
    for label, position, runs_in in (("mid", 3, "full"), ("hack", 4, "full"), ("clean", 5, "deploy")):
        forward, got = run(only(labelled(LABELS, "zeroed", "parameter"), position), settings("group"))
        one_pass, _ = run(only(labelled(LABELS, "detached", "parameter"), position), settings("group"))
        adapter.zero_grad()
        rollout = STEP.rollouts[position]
        assert rollout.view == "deploy"
        new, old = in_view(rollout, runs_in), in_view(rollout, "deploy").detach()
        A, rho = REWARDS[0][position] - statistics.fmean(REWARDS[0]), (new - old).exp()
        torch.maximum(-rho * A, -rho.clamp(0.8, 1.2) * A).sum().div(12 * MAX_NEW).backward()
        moved = (label == "clean") or float((rho - 1).detach().abs().max()) > 0.01
        learns = {"mid": ("deployed", "quarantine"), "hack": ("quarantine",), "clean": ("deployed",)}[label]
        expected = {key: g if key[0] in learns else 0 * g for key, g in block_grads(adapter).items()}
        assert moved and any(bool(g.any()) for (block, _), g in expected.items() if block == learns[-1])
        worst = max(worst, distance(got, expected))
        assert forward.n_discarded == 11 and one_pass.n_discarded == 11 + (label == "hack"), label
        assert abs((forward.mean_logp[position] or 0.0) - float(old.mean())) < 1e-6, "not the sampling view's"
    assert worst < 1e-6, worst
    return f"mid, hack and clean one at a time: within {worst:.1e}; the one-pass strategy discards the hack"


@gate.invariant("only rows whose value the route changes cost a second pass; the data picks the strategy")
def _():
    _, adapter, policy = stage()
    seen: list[tuple[bool, bool, int]] = []

    def note(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((adapter.state.masks is not None, torch.is_grad_enabled(), len(kwargs["input_ids"])))

    handle = policy.backbone.register_forward_pre_hook(note, with_kwargs=True)
    passes = {}
    for name, route in {
        "detached parameter": labelled(LABELS, "detached", "parameter"),
        "detached activation": labelled(LABELS, "detached", "activation"),
        "zeroed parameter": labelled(LABELS, "zeroed", "parameter"),
        "as sampled, activation": Route(q_grad=torch.ones(12), d_grad=torch.ones(12), mask="activation"),
    }.items():
        seen.clear()
        run(route, settings())
        masked, unmasked, old = (
            sum(n for m, g, n in seen if (m, g) == kind) for kind in ((True, True), (False, True), (False, False))
        )
        passes[name] = (masked, unmasked, old)
    handle.remove()
    # Of 12 rows: 2 deploy hacks are discarded by the one pass; 4 deploy rows (mid, hack) change their value; zeroed: 2
    # clean rows sampled in full as well.
    assert passes == {
        "detached parameter": (0, 10, 0),
        "detached activation": (12, 0, 4),
        "zeroed parameter": (12, 0, 6),
        "as sampled, activation": (12, 0, 0),
    }, passes
    return f"rows run (masked, in a view, again for the ratio): {passes}"


@gate.invariant("values as sampled with parameter masks, forced through this strategy, equal the one-pass strategy")
def _():
    worst = 0.0
    for labels, baseline, beta in itertools.product((LABELS, LABEL_ROUTE), ("group", "block"), (0.0, 0.1)):
        route = labelled(labels, "detached", "parameter")
        forced = route.resolve(VIEWS)
        assert forced.needs_forward and not route.needs_forward
        (one_pass, expected), (stats, got) = (run(r, settings(baseline, beta)) for r in (route, forced))
        worst = max(worst, distance(got, expected), abs(stats.loss - one_pass.loss) / abs(one_pass.loss))
        assert (stats.n_discarded, stats.n_clipped) == (one_pass.n_discarded, 0) and stats.n_discarded > 0
        assert stats.advantages == one_pass.advantages
    assert worst < 1e-11, worst
    return f"8 cases within {worst:.1e} (relative)"


@gate.invariant("micro-batches, checkpointing and folding change nothing")
def _():
    worst = 0.0
    for clean, kind in (("detached", "activation"), ("zeroed", "parameter")):
        route = labelled(LABELS, clean, kind)
        stats, expected = run(route, settings(beta=0.1))
        variants = [run(route, settings(beta=0.1, budget=budget)) for budget in (1, 40)]
        variants += [run(route, settings(beta=0.1), checkpointing=True), run(route, settings(beta=0.1), fold=False)]
        worst = max(worst, *(distance(got, expected) for _, got in variants))
        assert {(s.n_tokens, s.n_clipped) for s, _ in variants} == {(stats.n_tokens, stats.n_clipped)}
    assert len(stage(checkpointing=True)[2].checkpointed) == 2
    assert worst < 1e-11, worst
    return f"2 cells x 4 variants within {worst:.1e} (relative)"


@gate.invariant("the block baseline by hand, in both strategies")
def _():
    # label_route's rows: the clean ones are centred on 3.5 / 4 and 4 / 4, hacks keep the group's 9.5 / 6 and 10 / 6.
    by_rows = [0.125, 3 - 9.5 / 6, -0.375, 1.125, 3 - 9.5 / 6, -0.875, -0.5, 3 - 10 / 6, 1.0, -1.0, 3 - 10 / 6, 0.5]
    # Soft: d_grad .7, .7, .2, repeated, weighs the deployed block's mean: 4.45 / 3.2 and 5.25 / 3.2.
    means = [(0.7 * (r[0] + r[1] + r[3] + r[4]) + 0.2 * (r[2] + r[5])) / 3.2 for r in REWARDS]
    soft = [r - mean for rewards, mean in zip(REWARDS, means, strict=True) for r in rewards]
    worst = 0.0
    d_grad, q_grad = torch.tensor([s[2] for s in SOFT]), torch.tensor([s[1] for s in SOFT])
    for route, expected in (
        (LabelRouteSettings(), by_rows),
        (LabelRouteSettings(clean="zeroed"), by_rows),
        (LabelRouteSettings(mask="activation"), by_rows),
        (Route(d_grad=d_grad, q_grad=q_grad), soft),
        (Route(d_grad=d_grad, q_grad=q_grad, mask="activation"), soft),
    ):
        stats, _ = run(route, settings("block"))
        worst = max(worst, largest(torch.tensor(stats.advantages), torch.tensor(expected)))
        assert (
            route.__class__ is Route
            or abs(sum(a for a, r in zip(stats.advantages, LABEL_ROUTE) if r == "clean")) < 1e-5
        )
        assert largest(torch.tensor(run(route, settings("group"))[0].advantages), torch.tensor(expected)) > 0.1
    assert worst < 1e-6, worst
    return f"hard and soft labels, 5 routes within {worst:.1e}; deployed sums are 0 in each group"


@gate.invariant("the clip fraction is a declared column, null where nothing was trained")
def _():
    assert [c.undefined != "" for c in COLUMNS if c.name == "clip_frac"] == [True]
    verdict = Verdict(1.0, False, False, False, False, "Incorrect", False, True, True, False, "ok", "", 0.1, 0.1, "1")
    verdicts = Verdicts(STEP.groups, {r.id: verdict for r in STEP.rollouts})
    idle = Step(STEP.groups, dataclasses.replace(STEP.seen, keep=((False,) * 6,) * 2))
    found = []
    for clean, step in (("zeroed", STEP), ("detached", STEP), ("zeroed", idle)):
        stats, _ = run(LabelRouteSettings(clean=clean), settings(), step)
        found.append(step_row(0, verdicts, stats, {}, beta=0.0).values["clip_frac"])
        assert found[-1] is None or found[-1] == stats.n_clipped / stats.n_tokens
    assert found[0] and 0 < found[0] < 1 and found[1:] == [0.0, None], found
    return f"{found[0]:.3f} zeroed, 0 in the one pass, null in an idle step"


if __name__ == "__main__":
    gate.main()
