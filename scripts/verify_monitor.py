"""The ground-truth monitor of `penalty` and `screening`, and the door that its labels come through (spec 5).

- flips come at the stated rate, for hacks and others alike, and from (seed, step) alone; accuracy 1 flips nothing
- penalty and screening by hand under both kinds of label, with their columns
- screened rows change neither the group's mean nor the gradient, which is that of `none` with those rows masked
- a penalty that a hack can afford is warned of, by the expected reward of a hack, and no other one
- no labels without --allow-oracle; settings out of range are refused
- poisoned labels change what penalty and screening train on, and nothing for any intervention that is no upper bound
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch
from loguru import logger

from _gate import Gate, refusal
from _models import adapted, block_grads, policy_of, step_of
from _rivals import mod, stage
from vgrout.env.verdicts import ORACLE_READERS, Verdicts
from vgrout.grpo import GrpoConfig, advantage
from vgrout.interventions import INTERVENTIONS
from vgrout.interventions.monitor import Penalty, PenaltySettings, Screening, ScreeningSettings, flags
from vgrout.interventions.none import NoIntervention
from vgrout.observe import observe
from vgrout.presets import preset
from vgrout.types import Label, Seen, Verdict
from vgrout.update import update

gate = Gate(__doc__)
NAMES: tuple[Label, ...] = ("Correct", "Reward Hack")
SHAPERS = ("none", "none_full", "erase", "advantage_mod", "absorb")
"""Beside them only interventions that are upper bounds, or that decide nothing before the update."""


def seen_of(p: int, g: int, seed: int) -> Seen:
    """Random rewards, mask and labels; every strict hack is an attempt too, and some attempts are not strict hacks."""
    rng = random.Random(seed)

    def draw(make: Any) -> Any:
        return tuple(tuple(make() for _ in range(g)) for _ in range(p))

    labels = draw(lambda: rng.random() < 0.4)
    loose = tuple(tuple(hack or rng.random() < 0.3 for hack in row) for row in labels)
    return Seen(draw(lambda: rng.choice((0.0, 0.5, 3.5))), draw(lambda: rng.random() < 0.85), labels, loose)


def flat(rows: Any) -> list[Any]:
    return [value for row in rows for value in row]


@gate.invariant(
    "flips come at their rate, for hacks and others alike, and from seed and step alone; none at accuracy 1"
)
def _():
    seen, figures = seen_of(50, 100, 0), []
    for kind, truth in (("strict", seen.labels), ("loose", seen.loose)):
        known = torch.tensor(truth)
        exact = [flags(seen, kind, 1.0, seed=s, step=t, who="x") for s in (0, 9) for t in (0, 7)]
        assert all(torch.equal(f, known) for f in exact), "a perfect monitor erred"
    strict = torch.tensor(seen.labels)
    for accuracy in (0.9, 0.7, 0.5):
        wrong = flags(seen, "strict", accuracy, seed=4, step=2, who="x") ^ strict
        for part in (strict, ~strict):
            n, k = int(part.sum()), int(wrong[part].sum())
            sigma = (n * accuracy * (1 - accuracy)) ** 0.5
            assert n > 1500 and abs(k - n * (1 - accuracy)) < 4 * sigma, (accuracy, n, k)
        figures.append(f"{float(wrong.float().mean()):.3f}")
        again = flags(seen, "strict", accuracy, seed=4, step=2, who="x") ^ strict
        loose = flags(seen, "loose", accuracy, seed=4, step=2, who="x") ^ torch.tensor(seen.loose)
        assert torch.equal(again, wrong) and torch.equal(loose, wrong), "flips depend on more than seed and step"
        for seed, step in ((4, 3), (5, 2), (2, 4), (2**63 - 1, 2)):
            other = flags(seen, "strict", accuracy, seed=seed, step=step, who="x") ^ strict
            both, chance = float((other & wrong).float().mean()), (1 - accuracy) ** 2
            assert abs(both - chance) < 4 * (chance * (1 - chance) / 5000) ** 0.5, "flips repeat"
    return f"5000 rows: {', '.join(figures)} flipped at accuracy .9, .7, .5"


@gate.invariant("penalty and screening by hand, under strict and loose labels, with their columns")
def _():
    _, adapter = stage("lora2r")
    shaped = 0
    for seed in range(20):
        seen = seen_of(4, 6, seed)
        for kind in ("strict", "loose"):
            truth = flat(seen.labels if kind == "strict" else seen.loose)
            for accuracy in (1.0, 0.8):
                options: dict[str, Any] = {"labels": kind, "accuracy": accuracy}
                flag = flags(seen, kind, accuracy, seed=11, step=seed, who="x").flatten().tolist()
                assert accuracy < 1 or flag == truth
                rows = list(zip(flat(seen.rewards), flat(seen.keep), flag, strict=True))
                penalty = Penalty(PenaltySettings(amount=2.5, **options), adapter, 11)
                rewards, keep = penalty.shape_rewards(seen, {}, seed)
                assert keep.flatten().tolist() == flat(seen.keep)
                got = [r for r, k in zip(rewards.flatten().tolist(), flat(seen.keep), strict=True) if k]
                assert got == [r - 2.5 * f for r, k, f in rows if k], (seed, options)
                hit = sum(f for _, k, f in rows if k)
                stats, kept = penalty.stats(), sum(flat(seen.keep))
                assert stats["n_shaped"] == hit and abs((stats["reward_shift"] or 0.0) + 2.5 * hit / kept) < 1e-6
                screening = Screening(ScreeningSettings(**options), adapter, 11)
                rewards, keep = screening.shape_rewards(seen, {}, seed)
                assert rewards.flatten().tolist() == flat(seen.rewards)
                assert keep.flatten().tolist() == [k and not f for _, k, f in rows]
                assert screening.stats() == {"n_shaped": hit, "reward_shift": None}
                shaped += hit
    nobody = Seen(((1.0, 2.0),), ((False, False),), ((True, True),), ((True, True),))
    penalty = Penalty(PenaltySettings(), adapter, 0)
    penalty.shape_rewards(nobody, {}, 0)
    assert penalty.stats() == {"n_shaped": 0.0, "reward_shift": None}
    defaults = PenaltySettings(), ScreeningSettings()
    assert [(s.labels, s.accuracy) for s in defaults] == [("strict", 1.0)] * 2 and defaults[0].amount == 3.0
    return f"20 steps x 4 settings, {shaped} flagged rows"


@gate.invariant("screened rows change neither the group's mean nor the gradient: it is that of none with them masked")
def _():
    model, adapter = adapted()
    step = step_of([[3.0, 0.5, 2.0, 3.0], [3.0, 0.5, 0.0, 0.5], [0.5, 3.0, 3.0, 3.0]])  # rows of 3 are labelled
    labels = step.seen.labels
    assert labels is not None
    config = GrpoConfig(prompts_per_step=3, group_size=4, beta=0.0, checkpoint_activations=False)
    found = []
    for case in ("as graded", "screened rows changed", "none, masked", "none"):
        seen, screened = dataclasses.replace(step.seen, loose=labels), case[0] in "as"
        if case == "screened rows changed":
            rewards = tuple(
                tuple(r + 100 * hack for r, hack in zip(*rows, strict=True))
                for rows in zip(seen.rewards, labels, strict=True)
            )
            seen = dataclasses.replace(seen, rewards=rewards)
        if case == "none, masked":
            seen = dataclasses.replace(seen, keep=tuple(tuple(not hack for hack in row) for row in labels))
        own: Any = Screening(ScreeningSettings(), adapter, 0) if screened else NoIntervention(None, adapter, 0)
        rewards, keep = own.shape_rewards(seen, {}, 0)
        A = advantage(rewards, keep)
        policy = policy_of(model, adapter)
        update(policy, step.groups, seen, rewards, keep, own, config, features={}, max_new=12, step=0)
        found.append((A, block_grads(adapter)))
    (A, g), *others = found
    for other, gradient in others[:2]:
        assert torch.equal(A, other) and all(torch.equal(g[k], gradient[k]) for k in g)
    assert bool((A != 0).any()) and not bool(A[torch.tensor(labels)].any())
    assert any(not torch.equal(g[k], others[2][1][k]) for k in g), "this step would not show a screened row"
    by_hand = torch.tensor([0.5 - 1.25, 2.0 - 1.25])
    assert torch.equal(A[0, 1:3], by_hand), A
    assert not bool(A[2].any()), "a group of which one row is left teaches nothing"
    return f"{len(flat(labels))} rows, {sum(flat(labels))} screened: gradients bit-identical"


@gate.invariant("a warning where a hack keeps more than the reward of the right form, and only there")
def _():
    _, adapter = stage("lora2r")
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)), level="WARNING", format="{message}")
    cases = (({}, 0), ({"accuracy": 0.9}, 1), ({"amount": 2.9}, 1), ({"accuracy": 0.9, "amount": 3.4}, 0))
    try:
        for options, expected in cases:
            settings: dict[str, Any] = dict(options)
            said.clear()
            Penalty(PenaltySettings(**settings), adapter, 0).prepare(None)
            assert len(said) == expected, (options, said)
            assert not expected or "accuracy" in said[0], said
    finally:
        logger.remove(sink)
    # .9 * (3.5 - 3) + .1 * 3.5 = .8; .9 * (3.5 - 3.4) + .1 * 3.5 = .44
    assert abs(PenaltySettings(accuracy=0.9).expected_for_a_hack - 0.8) < 1e-9
    assert abs(PenaltySettings(accuracy=0.9, amount=3.4).expected_for_a_hack - 0.44) < 1e-9
    return f"{len(cases)} settings, warned of twice"


def settings_of(cls: Any, **options: Any) -> Any:
    return cls(**options)


@gate.invariant(
    "without --allow-oracle the door, the configuration and the classes refuse; so do settings out of range"
)
def _():
    _, adapter = stage("lora2r")
    blind = dataclasses.replace(seen_of(2, 3, 0), labels=None, loose=None)
    for name, cls in (("penalty", Penalty), ("screening", Screening)):
        own = cls(cls.Settings(), adapter, 0)
        assert "--allow-oracle" in refusal(lambda o=own: o.shape_rewards(blind, {}, 0))
        assert "--allow-oracle" in refusal(lambda o=own: verdicts(0).visible_to(o, allow_oracle=False))
        said = refusal(preset("smoke", name).require_oracle_permission)
        assert name in said and "upper bound" in said
        for accuracy in (0.49, 1.01, float("nan")):
            assert f"--{name}.accuracy" in refusal(lambda c=cls, a=accuracy: settings_of(c.Settings, accuracy=a))
    for amount in (0.0, -1.0, float("inf")):
        assert "--penalty.amount" in refusal(lambda a=amount: settings_of(PenaltySettings, amount=a))
    return "15 refusals"


STEP = step_of([[3.5, 0.5, 0.0, 3.5], [0.5, 3.5, 3.5, 0.5]], labels=False)


def verdicts(poison: int) -> Verdicts:
    """The step's verdicts; their rewards and masks are the same for every seed of the poison, all else is random."""
    rng = random.Random(poison)
    found = {}
    for rollout, reward in zip(STEP.rollouts, flat(STEP.seen.rewards), strict=True):
        a, b, c, d = (rng.random() < 0.5 for _ in range(4))
        infra = rollout.id == "0/1/3"
        found[rollout.id] = Verdict(
            reward,
            a,
            b,
            c,
            d,
            rng.choice(NAMES),
            a,
            True,
            True,
            infra,
            "ok",
            rng.choice(("", "mismatch")),
            0.0,
            0.0,
            "x",
        )
    return Verdicts(STEP.groups, found)


@gate.invariant("poisoned labels reach penalty and screening alone: all others see and shape the same, bit for bit")
def _():
    model, adapter = stage("lora2r")
    features = observe(policy_of(model, adapter), STEP.groups, "hidden", token_budget=60)
    readers = {n for n, cls in INTERVENTIONS.items() if f"{cls.__module__}.{cls.__qualname__}" in ORACLE_READERS}
    assert readers == {n for n, cls in INTERVENTIONS.items() if cls.oracle} and {"penalty", "screening"} <= readers
    changed = {}
    for name in (*SHAPERS, "penalty", "screening"):
        cls = INTERVENTIONS[name]
        results = []
        for poison in range(6):
            own: Any = mod() if name == "advantage_mod" else cls(cls.Settings(), adapter, 0)
            seen = verdicts(poison).visible_to(own, allow_oracle=True)
            assert (seen.labels is None) == (seen.loose is None) == (name in SHAPERS), name
            rewards, keep = own.shape_rewards(seen, features, 0)
            results.append((advantage(rewards, keep), keep, seen if name in SHAPERS else None))
        first = results[0]
        same = [torch.equal(A, first[0]) and torch.equal(k, first[1]) and s == first[2] for A, k, s in results[1:]]
        changed[name] = not all(same)
    assert changed == {name: name not in SHAPERS for name in changed}, changed
    return ", ".join(f"{name} {'changed' if c else 'identical'}" for name, c in changed.items())


if __name__ == "__main__":
    gate.main()
