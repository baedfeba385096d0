"""One step's update (strategy `gradient`) against a straight-line computation, and what must contribute nothing.

Invariants, in fp64 where a gradient is compared:
- the gradient and the loss of the step equal autograd on one rollout at a time, for every intervention with the rewards and
  weights that it chose, both baselines, with and without KL and normalisations, with groups without spread, masked rows
  and rows of the deploy view; weights of interventions without a gate are those that they declare;
- the token budget of the micro-batches changes nothing; reported log-probabilities are those of the rollouts;
- groups without spread and masked rows are not forwarded, and the denominator counts them all the same;
- under `none` the quarantine's gradient is exactly 0; a hack sampled in the deploy view is discarded and counted;
- poisoned labels with true rewards leave the gradient bit-identical, except under label_route, penalty and screening;
- label_route without labels is refused; its recall and false-alarm rates hold;
- micro-batches cover each row once, hold one view each, and stay within their budget.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from _gate import Gate, refusal
from _models import Alone, Gradients, Step, adapted, alone, block_grads, largest, plain_logps, policy_of, step_of
from _pairs import extractor_of, sides_of
from vgrout.adapter.base import Adapter
from vgrout.adapter.route import Route
from vgrout.directions.live import LiveDirection
from vgrout.grpo import GrpoConfig
from vgrout.interventions import INTERVENTIONS
from vgrout.interventions.base import Intervention, Rows
from vgrout.interventions.label_route import LabelRoute, LabelRouteSettings
from vgrout.observe import observe
from vgrout.policy import micro_batches
from vgrout.types import Seen
from vgrout.update import UpdateStats, update

gate = Gate(__doc__)
T, MAX_NEW = 0.8, 12
# Rewards of 3 are hacks: in group 0 one of them is the last row, which is sampled in the deploy view. Group 1 has no
# spread; group 2 has a masked row whose reward would otherwise be the largest.
REWARDS = [[3.0, 0.5, 2.0, 3.0], [0.5, 0.5, 0.5, 0.5], [3.0, 0.5, 9.0, 0.0]]
MASKED = ((2, 2),)
STEP = step_of(REWARDS, masked=MASKED)
Shaped = tuple[list[list[float]], list[list[bool]]]  # rewards and keep mask


@functools.cache
def stage() -> tuple[nn.Module, Adapter]:
    """One adapted model for every case: an update leaves nothing in it but `.grad`, which it sets to zero first."""
    return adapted()


@functools.cache
def direction() -> LiveDirection:
    extractor = extractor_of(*stage(), sides_of(6))
    return LiveDirection(extractor, extractor.extract())


def run(
    name: str, config: GrpoConfig, step: Step = STEP, seen: Seen | None = None
) -> tuple[UpdateStats, dict[tuple[str, str], Tensor], Shaped]:
    model, adapter = stage()
    cls = INTERVENTIONS[name]
    if seen is None:
        seen = step.seen if cls.oracle else dataclasses.replace(step.seen, labels=None)
    intervention = cls(cls.Settings(), adapter, 0)
    intervention.prepare(direction() if cls.needs_direction else None)
    policy = policy_of(model, adapter, temperature=T)
    features = observe(policy, step.groups, intervention.needs, token_budget=60)
    rewards, keep = intervention.shape_rewards(seen, features, 0)
    given = (policy, step.groups, seen, rewards, keep, intervention, config)
    stats = update(*given, max_new=MAX_NEW, step=0, features=features)
    return stats, block_grads(adapter), (rewards.tolist(), keep.tolist())


@functools.cache
def row(p: int, g: int) -> Alone:
    return alone(*stage(), STEP.groups[p].rollouts[g], T)


def by_hand(
    name: str, config: GrpoConfig, weights: list[tuple[float, float]], shaped: Shaped
) -> tuple[Gradients, float]:
    """The routed gradient and the loss, from the definitions and from one rollout at a time."""
    totals = {key: torch.zeros_like(g) for key, g in row(0, 0).d_logp.items()}
    loss, (rewards, keep) = 0.0, shaped
    for p in range(3):
        kept = [g for g in range(4) if keep[p][g]]
        values = [rewards[p][g] for g in kept]
        if max(values) - min(values) < 1e-6:
            continue
        mean, std = statistics.fmean(values), statistics.stdev(values) + 1e-4 if config.std_norm else 1.0
        total = sum(weights[4 * p + g][0] for g in kept)
        block = sum(weights[4 * p + g][0] * rewards[p][g] for g in kept) / (total or 1.0)
        for g in kept:
            learn = dict(zip(("deployed", "quarantine"), weights[4 * p + g], strict=True))
            own = INTERVENTIONS[name].routed and config.advantage_baseline == "block" and learn["deployed"] > 0
            A, r = (rewards[p][g] - (block if own else mean)) / std, row(p, g)
            weight = 1 / (4 * 3 * (r.tokens if config.length_norm else MAX_NEW))
            for key in totals:
                totals[key] += learn[key[0]] * weight * (config.beta * r.d_kl[key] - A * r.d_logp[key])
            loss += weight * (config.beta * r.kl - A * r.tokens) if any(learn.values()) else 0.0
    return totals, loss


def declared(name: str) -> list[tuple[float, float]]:
    """The weights of an intervention without a gate."""
    rows = [(r, reward) for group, row in zip(STEP.groups, REWARDS) for r, reward in zip(group.rollouts, row)]
    hack = [name == "label_route" and reward == 3.0 for _, reward in rows]
    quarantine = [(h or name in ("none_full", "absorb")) and r.view == "full" for h, (r, _) in zip(hack, rows)]
    return [(float(not h), float(q)) for h, q in zip(hack, quarantine, strict=True)]


def settings(baseline: str = "block", beta: float = 0.0, budget: int = 10_000, norm: str = "") -> GrpoConfig:
    options: dict[str, Any] = {
        "advantage_baseline": baseline,
        "std_norm": norm == "std",
        "length_norm": norm == "length",
    }
    return GrpoConfig(prompts_per_step=3, group_size=4, beta=beta, token_budget=budget, **options)


OPTIONS = [(0.5, 50, "length"), (0.001, 10_000, "std"), (0.0, 30, ""), (0.5, 1, "")]
"""(beta, token budget, normalisation)"""


def check_updates(options: list[tuple[float, int, str]]) -> str:
    worst, loss_error, cases = 0.0, 0.0, 0
    for name, cls in INTERVENTIONS.items():
        for baseline, option in itertools.product(("group", "block") if cls.routed else ("group",), options):
            config = settings(baseline, *option)
            stats, got, shaped = run(name, config)
            live = [i for i, logp in enumerate(stats.mean_logp) if logp is not None]
            if name not in ("routeV", "routeA", "moe"):
                assert all(stats.weights[i] == declared(name)[i] for i in live), name
            expected, loss = by_hand(name, config, stats.weights, shaped)
            scale = max(float(g.abs().max()) for g in expected.values())
            worst = max(worst, max(largest(got[k], expected[k]) for k in expected) / scale)
            loss_error = max(loss_error, abs(stats.loss - loss) / abs(loss))
            cases += 1
    # Advantages and token weights are fp32 (1e-7 relative); everything else is fp64.
    assert worst < 1e-6 and loss_error < 1e-5, (worst, loss_error)
    return f"{cases} cases, gradient within {worst:.1e}, loss within {loss_error:.1e} (relative)"


@gate.invariant("the step's gradient and loss equal one rollout at a time, for every intervention")
def _():
    return check_updates(OPTIONS[:1])


@gate.invariant("the same with other normalisations, token budgets and without KL", slow=True)
def _():
    return check_updates(OPTIONS[1:])


@gate.invariant("the micro-batches of any token budget give the same gradient")
def _():
    grads = [run("label_route", settings(beta=0.1, budget=budget))[1] for budget in (1, 30, 60, 10_000)]
    worst = max(largest(grads[0][k], other[k]) / float(grads[0][k].abs().max()) for other in grads[1:] for k in other)
    assert worst < 1e-11, worst
    return f"4 budgets, one row a batch to one batch a view: within {worst:.1e} (relative)"


@gate.invariant("reported log-probabilities and their distance to the sampler's are those of the rollouts")
def _():
    model, adapter = stage()
    groups, expected = [], []
    for group in STEP.groups:
        rollouts = []
        for r in group.rollouts:
            with torch.no_grad(), adapter.view(r.view):
                logps = plain_logps(model, r, T)
            off = [0.01 * (-1) ** t * (t + 1) for t in range(len(logps))]
            sampled = tuple(float(v) + o for v, o in zip(logps, off, strict=True))
            rollouts.append(dataclasses.replace(r, sampler_logps=sampled))
            expected.append((float(logps.mean()), statistics.fmean(map(abs, off)), max(map(abs, off))))
        groups.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
    stats, _, _ = run("none", settings(budget=30), Step(tuple(groups), STEP.seen))
    seen = [i for i, logp in enumerate(stats.mean_logp) if logp is not None]
    got = torch.tensor([[stats.mean_logp[i], stats.gap[i], stats.gap_max] for i in seen])
    want = torch.tensor([[*expected[i][:2], max(expected[j][2] for j in seen)] for i in seen])
    error = largest(got, want)
    assert error < 1e-6, error
    assert stats.n_tokens == sum(len(STEP.rollouts[i].completion_ids) for i in seen) and len(seen) == 7
    return f"{len(seen)} rows within {error:.1e}"


@gate.invariant("the block baseline changes what tells rows apart and nothing else")
def _():
    changed = {}
    for name in (name for name in INTERVENTIONS if name not in ("routeV", "routeA")):  # may find no hack here
        group, block = run(name, settings("group"))[1], run(name, settings("block"))[1]
        changed[name] = max(largest(group[k], block[k]) for k in group) > 1e-9
    assert {name for name, c in changed.items() if c} == {"label_route", "moe"}, changed
    model, adapter = stage()
    for config in (settings("group"), settings("block")):
        other = HalfDiscarded(None, adapter, 0)
        policy = policy_of(model, adapter, temperature=T)
        stats = update(policy, STEP.groups, STEP.seen, STEP.rewards, STEP.keep, other, config, max_new=MAX_NEW, step=0)
        assert stats.advantages[:4] == [0.875, -1.625, -0.125, 0.875], "an intervention that is not routed"
    return str(changed)


@gate.invariant("zero-spread groups and masked rows are not forwarded, and the denominator counts them")
def _():
    stats, with_idle, _ = run("none", settings(budget=1))
    forwarded = [i for i, logp in enumerate(stats.mean_logp) if logp is not None]
    assert forwarded == [0, 1, 2, 3, 8, 9, 11] and stats.n_zero_groups == 1, (forwarded, stats.n_zero_groups)
    assert [stats.advantages[i] for i in (4, 5, 6, 7, 10)] == [0.0] * 5
    single = Step(STEP.groups[:1], Seen(STEP.seen.rewards[:1], STEP.seen.keep[:1], None))
    _, one, _ = run("none", dataclasses.replace(settings(), prompts_per_step=1), single)
    _, same, _ = run("none", dataclasses.replace(settings(), prompts_per_step=3), single)
    error = max(largest(one[k], 3 * same[k]) for k in one) / max(float(g.abs().max()) for g in one.values())
    assert error < 1e-6 and any(bool(g.any()) for g in with_idle.values()), error
    idle = step_of([[0.5] * 4, [3.5] * 4])
    stats, grads, _ = run("none_full", dataclasses.replace(settings(beta=0.1), prompts_per_step=2), idle)
    assert not any(bool(g.any()) for g in grads.values()) and stats.n_tokens == 0 and stats.loss == 0.0
    assert all(p.grad is not None for p in stage()[1].parameters())
    option = dataclasses.replace(settings(beta=0.1), prompts_per_step=2, kl_on_zero_spread=True)
    stats, grads, _ = run("none_full", option, idle)
    assert any(bool(g.any()) for g in grads.values()) and stats.kl_sum > 0
    return f"7 of 12 rows forwarded; a step of idle groups has gradient exactly 0; P scales by {error:.0e}"


@gate.invariant("the quarantine is exactly untouched under none; deploy-view hacks are discarded and counted")
def _():
    stats, grads, _ = run("none", settings(beta=0.1))
    assert all(not g.any() for (block, _), g in grads.items() if block == "quarantine")
    assert stats.n_keep == stats.n_moving == 7 and stats.n_discarded == 0
    stats, grads, _ = run("label_route", settings("group"))
    assert (stats.n_moving, stats.n_rout, stats.n_keep, stats.n_discarded) == (7, 2, 4, 1), stats
    assert stats.mean_logp[3] is None, "a discarded row was forwarded"
    assert all(bool(g.any()) for g in grads.values())
    return "none: 7 rows keep; label_route: 2 rout, 4 keep, 1 discarded"


@gate.invariant("poisoned labels change nothing except under label_route, penalty and screening")
def _():
    changed = {}
    for name, cls in INTERVENTIONS.items():
        flipped = tuple(tuple(not label for label in row) for row in STEP.seen.labels or ())
        clean = run(name, settings())[1]
        poisoned = run(name, settings(), seen=dataclasses.replace(STEP.seen, labels=flipped))[1]
        changed[name] = not all(torch.equal(clean[k], poisoned[k]) for k in clean)
        assert changed[name] == cls.oracle, changed
    assert {name for name, c in changed.items() if c} == {"label_route", "penalty", "screening"}, changed
    return str(changed)


class HalfDiscarded(Intervention):
    """Not routed, but teaches the deployed block from half of the rows only."""

    def route(self, rows: Rows) -> Route:
        half = (torch.arange(rows.n) % 2).float()
        return Route(q_grad=0 * half, d_grad=half)


@gate.invariant("label_route: refused without labels, rates as asked")
def _():
    blind = dataclasses.replace(STEP.seen, labels=None)
    assert "--allow-oracle" in refusal(lambda: run("label_route", settings(), seen=blind))
    _, adapter = stage()
    n = 20_000
    labels = torch.arange(n) % 2 == 0
    rows = Rows(torch.ones(n), ("full",) * n, labels, 3)
    route = LabelRoute(LabelRouteSettings(recall=0.7, false_alarm=0.1), adapter, 5).route(rows)
    hack = route.d_grad == 0
    few, half = Rows(torch.ones(64), ("full",) * 64, labels[:64], 0), LabelRouteSettings(recall=0.5)
    draws = {
        tuple(LabelRoute(half, adapter, seed).route(dataclasses.replace(few, step=step)).d_grad.tolist())
        for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0))
    }
    assert len(draws) == 3, "a draw must depend on the seed and the step, and on nothing else"
    recall, alarm = float(hack[labels].float().mean()), float(hack[~labels].float().mean())
    assert abs(recall - 0.7) < 0.02 and abs(alarm - 0.1) < 0.02, (recall, alarm)
    return f"recall {recall:.3f} of .7, false alarms {alarm:.3f} of .1"


@gate.invariant("micro-batches cover each row once, one view each, within budget")
def _():
    rollouts = STEP.rollouts
    for budget in (1, 20, 40, 10_000):
        batches = micro_batches(rollouts, range(12), token_budget=budget, device=torch.device("cpu"))
        assert sorted(i for b in batches for i in b.rows) == list(range(12))
        for batch in batches:
            assert {rollouts[i].view for i in batch.rows} == {batch.view}
            assert batch.tokens.numel() <= budget or len(batch.rows) == 1
            for j, i in enumerate(batch.rows):
                ids = rollouts[i].prompt_ids + rollouts[i].completion_ids
                assert batch.tokens[j, : len(ids)].tolist() == list(ids)
                assert batch.targets[batch.owner == j].tolist() == list(rollouts[i].completion_ids)
    return "4 budgets; tokens, targets and owners as the rollouts have them"


if __name__ == "__main__":
    gate.main()
