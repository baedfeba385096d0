"""Extraction of directions (spec 4.2 to 4.4).

- D of every pair, module and token norm equals autograd one completion at a time, on both adapters; with `fixed` it is
  G P = 2 times the GRPO gradient of the group (hack, clean) at advantages +1 and -1; the caller's gradients stay
- the probe is D in the routing coordinates; v_grad and v_act are the unit mean differences, each in its own view
- axes are the right singular vectors, oriented by majority vote; one outlier does not flip an axis; ties are counted
- the noise floor is a quantile of all singular values of all modules, and comes before k_use
- non-finite gradients, special tokens and pairs that are too long are errors that name the pair
"""

from __future__ import annotations

import dataclasses
from typing import cast
from unittest import mock

import torch
from torch import Tensor

from _gate import Gate, refusal
from _models import adapted, largest, policy_of
from _pairs import T, extractor_of, nll_gradient, sides_of
from vgrout.adapter.base import Adapter
from vgrout.adapter.delta_s import DeltaSLinear
from vgrout.adapter.linear import AdaptedLinear
from vgrout.adapter.lora2r import Lora2rLinear
from vgrout.directions.activation import pair_activations
from vgrout.directions.config import TokenNorm
from vgrout.directions.gradient import NllOptions, pair_gradients
from vgrout.directions.pairs import Pair
from vgrout.directions.subspace import Axes, Subspace, axes_of, usable
from vgrout.grpo import GrpoConfig
from vgrout.interventions.none import NoIntervention
from vgrout.types import Group, Seen, View
from vgrout.update import update

gate = Gate(__doc__)
N = 5
SIDES = sides_of(N)


@gate.invariant("D equals autograd one completion at a time, for both adapters, views and every token norm")
def _():
    worst = 0.0
    norms: tuple[TokenNorm, ...] = ("mean", "sum", "fixed")
    for kind in ("lora2r", "delta_s"):
        model, adapter = adapted(kind=kind)
        policy = policy_of(model, adapter, temperature=T)
        for view, norm in ((v, n) for v in ("deploy", "full") for n in norms):
            view: View
            adapter.zero_grad()
            for i, g in enumerate(adapter.gradients()):
                g += i + 1
            before = [g.clone() for g in adapter.gradients()]
            got = pair_gradients(policy, SIDES, view, NllOptions(norm, 12, 60))
            assert all(map(torch.equal, before, adapter.gradients())), "the caller's gradients were touched"
            for i, row in enumerate(SIDES.rows):
                n = len(row.completion_ids)
                weight = {"mean": 1 / n, "sum": 1.0, "fixed": 1 / 12}[norm]
                for name, wanted in nll_gradient(model, adapter, row, view, weight).items():
                    mine = got.deployed[name][i // N, i % N]
                    worst = max(worst, largest(mine, wanted) / float(wanted.abs().max()))
    assert worst < 1e-9, worst
    return f"2 adapters x 2 views x 3 norms x {2 * N} completions: within {worst:.1e} (relative)"


@gate.invariant("with the fixed norm D is 2 times the GRPO gradient at advantages +1 and -1, ratio 1, beta 0")
def _():
    worst = 0.0
    for kind in ("lora2r", "delta_s"):
        model, adapter = adapted(kind=kind)
        policy = policy_of(model, adapter, temperature=T)
        D = pair_gradients(policy, SIDES, "full", NllOptions("fixed", 12, 60)).differences()
        config = GrpoConfig(prompts_per_step=1, group_size=2, beta=0.0, checkpoint_activations=False)
        for p in range(N):
            pair = (SIDES.rows[p], SIDES.rows[N + p])
            group = Group(pair[0].prompt, pair)
            seen = Seen(((1.0, -1.0),), ((True, True),))
            none = NoIntervention(NoIntervention.Settings(), adapter, 0)
            rewards, keep = none.shape_rewards(seen, {}, 0)
            update(policy, [group], seen, rewards, keep, none, config, max_new=12, step=0)
            for name, g in adapter.deployed(adapter.gradients()).items():
                worst = max(worst, largest(D[name][p], 2 * g) / float(g.abs().max()))
    assert worst < 1e-6, worst  # the loss's weights are fp32
    return f"2 adapters x {N} pairs: within {worst:.1e} (relative)"


@gate.invariant("v_grad is the unit mean difference of the probes in each view, v_act that of ablated bottlenecks")
def _():
    worst = 0.0
    for kind in ("lora2r", "delta_s"):
        model, adapter = adapted(kind=kind)
        extractor = extractor_of(model, adapter, SIDES)
        found = extractor.extract()
        for view in ("full", "deploy"):
            view: View
            whole = [nll_gradient(model, adapter, row, view, 1 / len(row.completion_ids)) for row in SIDES.rows]
            for module in adapter.modules:
                rows = [_probe_by_hand(module, found_at[module.name]) for found_at in whole]
                mean = torch.stack(rows[:N]).mean(0) - torch.stack(rows[N:]).mean(0)
                worst = max(worst, largest(found.grad[view][module.name], mean / mean.norm()))
        apart = max(largest(found.grad["full"][m.name], found.grad["deploy"][m.name]) for m in adapter.modules)
        assert apart > 1e-3, "the views give the same direction, so one of them is not looked at"
        h = pair_activations(extractor.policy, SIDES, token_budget=60)
        for module in adapter.modules:
            difference = (h[module.name][0] - h[module.name][1]).mean(0)
            worst = max(worst, largest(found.act[module.name], difference / difference.norm()))
        worst = max(worst, _bottleneck_error(model, adapter, h))
    assert worst < 1e-9, worst
    return f"2 adapters x 2 views x 14 modules: within {worst:.1e}"


def _probe_by_hand(module: AdaptedLinear, gradient: Tensor) -> Tensor:
    """The derivative in a diagonal between A and B is diag(B^T dB) (lora2r); delta_s has its own coordinates."""
    if not isinstance(module, Lora2rLinear):
        return gradient
    r = module.rank
    dB = gradient[r * module.A.shape[1] :].view(-1, r)
    return (module.B[:, :r] * dB).sum(0).detach()


def _bottleneck_error(model: torch.nn.Module, adapter: Adapter, h: dict[str, Tensor]) -> float:
    """Inputs caught by a forward hook, completion tokens only, one row at a time."""
    worst = 0.0
    for i, row in enumerate(SIDES.rows):
        seen: dict[str, Tensor] = {}
        handles = [
            m.register_forward_hook(lambda m, x, _, seen=seen: seen.__setitem__(m.name, x[0][0]))
            for m in adapter.modules
        ]
        with torch.no_grad(), adapter.view("deploy"):
            model(input_ids=torch.tensor([row.prompt_ids + row.completion_ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        for m in adapter.modules:
            x = seen[m.name][len(row.prompt_ids) :]
            wanted = (x @ (m.A[: m.rank] if isinstance(m, Lora2rLinear) else cast(DeltaSLinear, m).Vh).T).mean(0)
            worst = max(worst, largest(h[m.name][i // N, i % N], wanted))
    return worst


@gate.invariant("axes are right singular vectors; majority vote orients them, one outlier does not; ties are counted")
def _():
    generator = torch.Generator().manual_seed(0)
    D = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    axes, ties = axes_of(D, 4)
    gram = D.T @ D
    for v, s in zip(axes.V, axes.S, strict=True):
        assert largest(gram @ v, s * s * v) < 1e-9 * float(s * s), "not an eigenvector of D^T D"
        assert int((D @ v > 0).sum()) >= 4, "the majority points the other way"
    assert ties == 0 and largest(axes.V @ axes.V.T, torch.eye(4)) < 1e-9 and bool((axes.S.diff() <= 0).all())
    u = torch.nn.functional.normalize(torch.randn(40, generator=generator, dtype=torch.float64), dim=0)
    outlier = torch.stack([u, u, u, -9 * u]) + 0.01 * torch.randn(4, 40, generator=generator, dtype=torch.float64)
    assert float(axes_of(outlier, 1)[0].V[0] @ u) > 0.9 > 0 > float(outlier.mean(0) @ u), "the outlier decided"
    split = torch.stack([u, u, -u, -u]) + 0.01 * torch.randn(4, 40, generator=generator, dtype=torch.float64)
    axes, ties = axes_of(split, 1)
    assert ties == 1 and float(axes.V[0][axes.V[0].abs().argmax()]) > 0, "a tie keeps the canonical sign"
    assert axes_of(torch.stack([u, 2 * u]), 5)[0].V.shape == (1, 40), "an axis of rounding size was kept"
    assert axes_of(torch.zeros(3, 40), 2)[0].V.shape == (0, 40)
    return "4 axes, an outlier of -9, a tie, rank 1 of 5, and a zero module"


@gate.invariant("the noise floor is a quantile of all singular values over all modules, before k_use")
def _():
    S = {"a": [9.0, 8.0, 7.0, 6.0], "b": [5.0, 4.0, 3.0, 2.0], "c": [1.0, 0.9, 0.8, 0.7]}
    eye = torch.eye(4)
    whole = Subspace({name: Axes(eye, torch.tensor(values)) for name, values in S.items()})
    kept = usable(whole, noise_floor=0.5, k_use=2)
    # By hand: the median of the twelve is (3 + 4) / 2 = 3.5, so a keeps four (two are used), b two, c none.
    assert {n: a.S.tolist() for n, a in kept.axes.items()} == {"a": [9.0, 8.0], "b": [5.0, 4.0]}, kept
    assert (kept.dropped, kept.skipped) == (6, 1)
    assert torch.equal(kept.axes["b"].V, eye[:2])
    # Were the quantile taken after k_use, it would be of 9 8 5 4 1 .9, i.e. 4.5, and b would keep one axis.
    assert (
        len(usable(whole, noise_floor=0.0, k_use=1).axes) == 3 and usable(whole, noise_floor=0.0, k_use=4).dropped == 0
    )
    only = usable(Subspace({"z": Axes(eye[:0], torch.zeros(0))}), noise_floor=0.25, k_use=1)
    assert not only.axes and only.skipped == 1
    return "three modules: a uses 2 of 4, b 2, c is skipped; 6 axes dropped"


@gate.invariant("non-finite gradients, special tokens and too long pairs are errors that name the pair")
def _():
    from transformers import PreTrainedTokenizerFast

    from vgrout.directions.gradient import encode
    from vgrout.models import load_model

    model, adapter = adapted()
    real = policy_of(model, adapter, temperature=T)
    plain = type(real).logps
    with mock.patch.object(type(real), "logps", lambda self, batch: plain(self, batch) * float("inf")):
        message = refusal(lambda: pair_gradients(real, SIDES, "deploy", NllOptions("mean", 12, 60)))
        assert "p0/hack" in message and "_proj" in message, message
    tokenizer = load_model("tiny").tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    pair = Pair("f/one", ("f",), (("user", "do it"),), hack="x = 1", clean="y = 2")
    sides = encode([pair], tokenizer)
    assert [r.completion_ids[-1] for r in sides.rows] == [tokenizer.eos_token_id] * 2
    assert tokenizer.decode(list(sides.rows[0].completion_ids[:-1])) == "x = 1"
    bad = dataclasses.replace(pair, hack=f"x {tokenizer.eos_token} y")
    assert "f/one" in refusal(lambda: encode([bad], tokenizer))
    assert "positions" in refusal(lambda: encode([pair], tokenizer, positions=5))
    return "3 kinds, each with its pair's name"


if __name__ == "__main__":
    gate.main()
