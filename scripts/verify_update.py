"""One step's update (strategy `gradient`) against a straight-line computation, and what must contribute nothing.

Invariants, in fp64 where a gradient is compared:
- the gradient and the loss of the step equal autograd on one rollout at a time, for every intervention, both baselines,
  with and without KL and normalisations, with groups without spread, masked rows and rows of the deploy view;
- the token budget of the micro-batches changes nothing; reported log-probabilities are those of the rollouts;
- groups without spread and masked rows are not forwarded, and the denominator counts them all the same;
- under `none` the quarantine's gradient is exactly 0; a hack sampled in the deploy view is discarded and counted;
- poisoned labels with true rewards leave the gradient bit-identical, except under label_route;
- label_route without labels is refused; its recall and false-alarm rates hold;
- micro-batches cover each row once, hold one view each, and stay within their budget.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics

import torch
from torch import Tensor, nn

from _gate import Gate
from _models import Alone, Gradients, Step, adapted, alone, block_grads, largest, plain_logps, policy_of, step_of
from vgrout.adapter.base import Adapter
from vgrout.adapter.route import Route
from vgrout.grpo import GrpoConfig
from vgrout.interventions import INTERVENTIONS
from vgrout.interventions.base import Intervention, Rows
from vgrout.interventions.label_route import LabelRouteSettings
from vgrout.policy import micro_batches
from vgrout.types import Seen, UserError
from vgrout.update import UpdateStats, update

gate = Gate(__doc__)
T, MAX_NEW = 0.8, 12
# Rewards of 3 are hacks: in group 0 one of them is the last row, which is sampled in the deploy view. Group 1 has no
# spread; group 2 has a masked row whose reward would otherwise be the largest.
REWARDS = [[3.0, 0.5, 2.0, 3.0], [0.5, 0.5, 0.5, 0.5], [3.0, 0.5, 9.0, 0.0]]
MASKED = ((2, 2),)
STEP = step_of(REWARDS, masked=MASKED)


@functools.cache
def stage() -> tuple[nn.Module, Adapter]:
    """One adapted model for every case: an update leaves nothing in it but `.grad`, which it sets to zero first."""
    return adapted()


def run(
    name: str, config: GrpoConfig, step: Step = STEP, seen: Seen | None = None
) -> tuple[UpdateStats, dict[tuple[str, str], Tensor], Adapter]:
    model, adapter = stage()
    cls = INTERVENTIONS[name]
    if seen is None:
        seen = step.seen if cls.oracle else dataclasses.replace(step.seen, labels=None)
    intervention = cls(cls.Settings(), adapter, 0)
    rewards, keep = intervention.shape_rewards(seen)
    policy = policy_of(model, adapter, temperature=T)
    stats = update(policy, step.groups, seen, rewards, keep, intervention, config, max_new=MAX_NEW, step=0)
    return stats, block_grads(adapter), adapter


@functools.cache
def row(p: int, g: int) -> Alone:
    return alone(*stage(), STEP.groups[p].rollouts[g], T)


def by_hand(name: str, config: GrpoConfig) -> tuple[Gradients, float]:
    """The routed gradient and the loss, from the definitions and from one rollout at a time."""
    totals = {key: torch.zeros_like(g) for key, g in row(0, 0).d_logp.items()}
    loss = 0.0
    for p in range(3):
        kept = [g for g in range(4) if (p, g) not in MASKED]
        if len({REWARDS[p][g] for g in kept}) == 1:
            continue
        hack = [name == "label_route" and REWARDS[p][g] == 3.0 for g in range(4)]
        mean = statistics.fmean(REWARDS[p][g] for g in kept)
        own_mean = statistics.fmean(REWARDS[p][g] for g in kept if not hack[g])
        std = statistics.stdev(REWARDS[p][g] for g in kept) + 1e-4 if config.std_norm else 1.0
        for g in kept:
            learn = {"quarantine"} if hack[g] else {"deployed"}
            learn |= {"deployed", "quarantine"} if name in ("none_full", "absorb") else set()
            learn -= {"quarantine"} if STEP.groups[p].rollouts[g].view == "deploy" else set()
            routed = name in ("absorb", "label_route")
            centre = own_mean if routed and config.advantage_baseline == "block" and not hack[g] else mean
            A, r = (REWARDS[p][g] - centre) / std, row(p, g)
            weight = 1 / (4 * 3 * (r.tokens if config.length_norm else MAX_NEW))
            for key in totals:
                if key[0] in learn:
                    totals[key] += weight * (config.beta * r.d_kl[key] - A * r.d_logp[key])
            loss += weight * (config.beta * r.kl - A * r.tokens) if learn else 0.0
    return totals, loss


def settings(baseline: str = "block", beta: float = 0.0, budget: int = 10_000, norm: str = "") -> GrpoConfig:
    return GrpoConfig(
        prompts_per_step=3,
        group_size=4,
        beta=beta,
        advantage_baseline=baseline,  # ty: ignore[invalid-argument-type]
        token_budget=budget,
        checkpoint_activations=False,
        std_norm=norm == "std",
        length_norm=norm == "length",
    )


OPTIONS = [(0.0, 30, ""), (0.001, 10_000, "std"), (0.5, 1, ""), (0.5, 50, "length")]
"""(beta, token budget, normalisation)"""


@gate.invariant("the step's gradient and loss equal one rollout at a time, for every intervention and option")
def _():
    worst = loss_error = 0.0
    for name, baseline, options in itertools.product(INTERVENTIONS, ("group", "block"), OPTIONS):
        config = settings(baseline, *options)
        expected, loss = by_hand(name, config)
        stats, got, _ = run(name, config)
        scale = max(float(g.abs().max()) for g in expected.values())
        worst = max(worst, max(largest(got[k], expected[k]) for k in expected) / scale)
        loss_error = max(loss_error, abs(stats.loss - loss) / abs(loss))
    # Advantages and token weights are fp32 (1e-7 relative); everything else is fp64.
    assert worst < 1e-6 and loss_error < 1e-5, (worst, loss_error)
    cases = 2 * len(INTERVENTIONS) * len(OPTIONS)
    return f"{cases} cases, gradient within {worst:.1e}, loss within {loss_error:.1e} (relative)"


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


@gate.invariant("the block baseline changes label_route and nothing else here")
def _():
    changed = {}
    for name in INTERVENTIONS:
        group, block = run(name, settings("group"))[1], run(name, settings("block"))[1]
        changed[name] = max(largest(group[k], block[k]) for k in group) > 1e-9
    assert changed == {name: name == "label_route" for name in INTERVENTIONS}, changed
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
    stats, grads, adapter = run("none_full", dataclasses.replace(settings(beta=0.1), prompts_per_step=2), idle)
    assert not any(bool(g.any()) for g in grads.values()) and stats.n_tokens == 0 and stats.loss == 0.0
    assert all(p.grad is not None for p in adapter.parameters())
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


@gate.invariant("poisoned labels change nothing except under label_route")
def _():
    changed = {}
    for name, cls in INTERVENTIONS.items():
        flipped = tuple(tuple(not label for label in row) for row in STEP.seen.labels or ())
        clean = run(name, settings())[1]
        poisoned = run(name, settings(), seen=dataclasses.replace(STEP.seen, labels=flipped))[1]
        changed[name] = not all(torch.equal(clean[k], poisoned[k]) for k in clean)
        assert changed[name] == cls.oracle, changed
    return str(changed)


class HalfDiscarded(Intervention):
    """Not routed, but teaches the deployed block from half of the rows only."""

    def route(self, rows: Rows) -> Route:
        half = (torch.arange(rows.n) % 2).float()
        return Route(q_grad=0 * half, d_grad=half)


@gate.invariant("label_route: refused without labels, rates as asked")
def _():
    try:
        run("label_route", settings(), seen=dataclasses.replace(STEP.seen, labels=None))
    except UserError as error:
        assert "--allow-oracle" in str(error)
    else:
        raise AssertionError("label_route ran without labels")
    _, adapter = stage()
    n = 20_000
    labels = torch.arange(n) % 2 == 0
    rows = Rows(torch.ones(n), ("full",) * n, labels, 3)
    route = INTERVENTIONS["label_route"](LabelRouteSettings(recall=0.7, false_alarm=0.1), adapter, 5).route(rows)
    hack = route.d_grad == 0
    draws = {
        INTERVENTIONS["label_route"](LabelRouteSettings(recall=0.5), adapter, seed)
        .route(Rows(torch.ones(64), ("full",) * 64, labels[:64], step))
        .d_grad.numpy()
        .tobytes()
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
