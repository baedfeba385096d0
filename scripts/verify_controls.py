"""The two controls of an ablation as weights: the deployed block ablated, and a random removal of the quarantine's size.

Invariants:
- every view's weights equal matrices made by hand in fp64 from A, B, A0, B0 or from the delta vectors, on both adapters;
- on every adapter the changes of `deploy` and `clean_ablated` add up to that of `full`;
- the forward of `clean_ablated` is that of its weights, and teaches the quarantine alone;
- what `random_removal` subtracts has the singular values of the quarantine's change, on whole matrices, a young one's too;
- it is random in its axes: no direction is preferred, modules and seeds differ, the same seed gives the same matrix;
- without movement of the quarantine nothing is subtracted, bit for bit; weights come back bit for bit; no RNG moves;
- `random_removal` has no training forward, no route and no removal without a seed; rows sampled in a control have no route;
- rows of mixed views, the controls among them, are each those of their own view;
- for a weight of a 4B model nothing larger than 2r x 2r is decomposed into singular values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal
from unittest import mock

import torch
from torch import Tensor, nn

from _gate import Gate
from _models import VOCAB, adapted, largest
from vgrout.adapter.base import Adapter
from vgrout.adapter.delta_s import DeltaSLinear
from vgrout.adapter.linear import ACTS, AdaptedLinear, AdapterState
from vgrout.adapter.lora2r import Lora2rLinear
from vgrout.adapter.removal import random_factors
from vgrout.adapter.route import constant
from vgrout.types import View

gate = Gate(__doc__)
Basis = Literal["shared", "distinct"]
Kind = Literal["lora2r", "delta_s"]
CASES: tuple[tuple[Kind, bool, Basis], ...] = (
    ("lora2r", True, "shared"),
    ("lora2r", False, "shared"),
    ("delta_s", False, "shared"),
    ("delta_s", False, "distinct"),
)
VIEWS: tuple[View, ...] = ("full", "deploy", "base", "clean_ablated")
EVERY: tuple[View, ...] = (*VIEWS, "random_removal")
TOKENS = torch.randint(0, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))


def made(case: tuple[Kind, bool, Basis], *, double: bool = True, moved: float = 0.05) -> tuple[nn.Module, Adapter]:
    kind, fold, basis = case
    return adapted(kind=kind, fold=fold, basis=basis, double=double, moved=moved)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def by_hand(module: AdaptedLinear) -> tuple[Tensor, Tensor]:
    """Net change of the weight by the deployed block and by the quarantine, in fp64, one rank entry at a time."""
    if isinstance(module, Lora2rLinear):
        A, B, A0, B0 = (t.detach().double() for t in (module.A, module.B, module.A0, module.B0))
        of = [torch.outer(B[:, k], A[k]) - torch.outer(B0[:, k], A0[k]) for k in range(2 * module.rank)]
        return sum(of[: module.rank], torch.zeros(())), sum(of[module.rank :], torch.zeros(()))
    assert isinstance(module, DeltaSLinear)
    U, Vh, d, q = (t.detach().double() for t in (module.U, module.Vh, module.delta_d, module.delta_q))
    eye = torch.eye(len(d), dtype=torch.float64)
    Q = eye if module.rotation is None else module.rotation(eye).T  # column j is Q e_j
    return U @ d.diag() @ Vh, U @ Q.T @ q.diag() @ Q @ Vh


@gate.invariant("weights of every view equal those made by hand; deploy and clean_ablated add up to full")
def _():
    worst = apart = 0.0
    for case in CASES:
        _, adapter = made(case)
        for m in adapter.modules:
            deployed, quarantine = by_hand(m)
            wanted = {"full": deployed + quarantine, "deploy": deployed, "clean_ablated": quarantine}
            for view in VIEWS:
                worst = max(worst, largest(m.delta(view), wanted.get(view, torch.zeros_like(deployed))))
            worst = max(worst, largest(m.delta("deploy") + m.delta("clean_ablated"), m.delta("full")))
            with adapter.removing(4):
                A, B = m.removal()
                worst = max(worst, largest(m.delta("random_removal"), deployed + quarantine - B @ A))
            apart = max(apart, largest(quarantine, deployed))
    assert worst < 1e-12 and apart > 0.1, (worst, apart)
    return (
        f"{len(CASES)} adapters x {len(EVERY)} views x 14 modules within {worst:.1e}; the blocks differ by {apart:.1f}"
    )


@gate.invariant("the forward of clean_ablated is that of its weights, and teaches the quarantine alone")
def _():
    worst = 0.0
    for case in CASES:
        model, adapter = made(case)
        with adapter.view("clean_ablated"):
            ours = model(input_ids=TOKENS, use_cache=False).logits
            adapter.zero_grad()
            ours.square().sum().backward()
        assert adapter.block_norm("deployed", "grad") == 0, f"{case}: the ablated block received a gradient"
        assert adapter.block_norm("quarantine", "grad") > 1, case
        with adapter.merged("clean_ablated"):
            worst = max(worst, largest(logits(model), ours))
        with torch.no_grad():  # the same, with the deployed block put back to its init for good
            for _, t in adapter.trainables():
                if "deployed" in t.parts:
                    t.value[t.parts["deployed"]] = t.init[t.parts["deployed"]].to(t.value)
        with adapter.view("full"):
            assert largest(logits(model), ours) < 1e-9, case
    assert worst < 1e-9, worst
    return f"{len(CASES)} adapters: merged within {worst:.1e}, a block reset for good within 1e-9"


@gate.invariant("what is subtracted has the singular values of the quarantine's change, a young one's too")
def _():
    worst = {}
    for moved in (0.05, 1e-5):
        for case in CASES:
            for double in (True, False):
                _, adapter = made(case, double=double, moved=moved)
                error = 0.0
                with adapter.removing(2):
                    for m in adapter.modules:
                        whole = m.delta("full").double() - m.delta("random_removal").double()
                        A, B = (f.double() for f in m.removal())
                        wanted, got = (torch.linalg.svdvals(t) for t in (by_hand(m)[1], B @ A))
                        error = max(error, float((wanted - got).abs().max() / wanted.max()))
                        assert largest(whole, B @ A) < (1e-12 if double else 1e-6), m.name
                        assert bool((torch.linalg.matrix_rank(B @ A) > 1).all()), m.name
                worst[case[0], double, moved] = max(worst.get((case[0], double, moved), 0.0), error)
    for (kind, double, moved), error in worst.items():
        # The bases of delta_s are decomposed in fp32, so they are orthonormal to that only.
        assert error < (1e-10 if double and kind == "lora2r" else 1e-5), (kind, double, moved, error)
    figures = "; ".join(f"{k} {'fp64' if d else 'fp32'} moved {m:g} {e:.1e}" for (k, d, m), e in worst.items())
    return f"largest relative error of a singular value, {figures}"


@gate.invariant("the removal is random in its axes, differs between modules and seeds, and repeats")
def _():
    values = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    draws = []
    for seed in range(600):
        A, B = random_factors(values, (9, 7), seed=seed, name="layers.0.q_proj")
        draws.append(B @ A)
    R = torch.stack(draws)
    # The mean of every entry is 0, its variance |s|^2 / (rows * columns), whatever orthogonal axes it is looked at in.
    turn = [
        torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)))[0]
        for n in (9, 7)
    ]
    for seen in (R, turn[0] @ R @ turn[1]):
        z = float((seen.mean(0) * len(R) ** 0.5 / seen.std(0)).abs().max())
        spread = seen.square().mean(0) / (float(values.square().sum()) / 63)
        assert z < 4.5, f"entries have a mean other than 0: z = {z:.1f}"
        assert float(spread.min()) > 0.7 and float(spread.max()) < 1.3, spread
    _, adapter = made(CASES[0])
    _, again = made(CASES[0])
    found: dict[tuple[str, int], Tensor] = {}
    for seed in (0, 1):
        with adapter.removing(seed), again.removing(seed):
            for m, other in zip(adapter.modules, again.modules, strict=True):
                (A, B), (A2, B2) = m.removal(), other.removal()
                assert torch.equal(A, A2) and torch.equal(B, B2), f"{m.name}: the same seed, another matrix"
                found[m.name, seed] = B @ A
    pairs = 0
    for (_, a), (_, b) in itertools.combinations(found.items(), 2):
        if a.shape == b.shape:
            overlap = float((a * b).sum() / a.norm() / b.norm())
            assert abs(overlap) < 0.5, overlap
            pairs += 1
    return f"600 draws: largest z {z:.1f}, variances {spread.min():.2f} to {spread.max():.2f} of what is due; {pairs} pairs differ"


@gate.invariant("no movement, no removal; weights come back bit for bit; the RNG of training is untouched")
def _():
    for case in CASES:
        model, adapter = made(case, double=False)
        with torch.no_grad():
            for _, t in adapter.trainables():
                if "quarantine" in t.parts:
                    t.value[t.parts["quarantine"]] = t.init[t.parts["quarantine"]]
        for view, twin in (("random_removal", "full"), ("deploy", "full"), ("clean_ablated", "base")):
            merged = {}
            with adapter.removing(0):
                for of in (view, twin):
                    with adapter.merged(of):
                        merged[of] = [m.weight.clone() for m in adapter.modules]
            assert all(torch.equal(a, b) for a, b in zip(*merged.values(), strict=True)), (case, view)
        model, adapter = made(case, double=False)
        before, plain = [m.weight.clone() for m in adapter.modules], logits(model)
        torch.manual_seed(11)
        with adapter.removing(0), adapter.merged("random_removal"):
            assert largest(logits(model), plain) > 0.05
            with adapter.merged("clean_ablated"):
                pass
            again = [m.weight.clone() for m in adapter.modules]
        with adapter.removing(0), adapter.merged("random_removal"):
            assert all(torch.equal(m.weight, w) for m, w in zip(adapter.modules, again, strict=True)), case
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(11))), "the RNG moved"
        assert all(torch.equal(m.weight, w) for m, w in zip(adapter.modules, before, strict=True)), case
        assert torch.equal(logits(model), plain) and adapter.state.removal_seed is None
    return f"{len(CASES)} adapters"


def says(act: Callable[[], object], *parts: str) -> None:
    try:
        act()
    except ValueError as error:
        assert all(part in str(error) for part in parts), error
        return
    raise AssertionError(f"nothing was refused ({parts})")


def entered(context: AbstractContextManager[object]) -> None:
    with context:
        pass


@gate.invariant("random_removal has no training forward, no route and no default seed; controls have no route")
def _():
    _, adapter = made(CASES[0], double=False)
    before = [m.weight.clone() for m in adapter.modules]
    assert "random_removal" not in ACTS
    says(lambda: entered(adapter.view("random_removal")), "random_removal", "no training forward")
    says(lambda: entered(adapter.merged("random_removal")), "no seed")
    with adapter.removing(0), adapter.merged("random_removal"):
        says(lambda: entered(adapter.view("random_removal")), "no training forward")
        says(lambda: entered(adapter.view("full")), "merged")
        says(lambda: entered(adapter.removing(1)), "seed")
    route = constant(2, deployed=1.0, quarantine=1.0)
    for control in ("clean_ablated", "random_removal"):
        says(lambda control=control: route.block_weights(("full", control)), control)
        says(lambda control=control: route.resolve(("deploy", control)), control)
    assert route.block_weights(("full", "deploy")).tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert all(torch.equal(m.weight, w) for m, w in zip(adapter.modules, before, strict=True))
    return "9 refusals by name"


@gate.invariant("rows of mixed views are each those of their own view, controls among them")
def _():
    worst = 0.0
    for case in CASES:
        model, adapter = made(case, double=False)
        with adapter.removing(5):
            alone: dict[View, Tensor] = {}
            for view in EVERY:
                with adapter.merged(view):
                    alone[view] = logits(model)
            for first, second in itertools.permutations(EVERY, 2):
                rows: tuple[View, ...] = (second, first, second)
                with adapter.merged_rows((first, second)) as select:
                    select(rows)
                    mixed = logits(model)
                worst = max(worst, *(largest(mixed[i], alone[view][i]) for i, view in enumerate(rows)))
    assert worst < 1e-4, worst
    return f"{len(CASES)} adapters x 20 pairs of views within {worst:.1e}"


@gate.invariant("a weight of a 4B model needs no decomposition beyond 2r x 2r")
def _():
    linear = nn.Linear(2560, 9728, bias=False)
    module = lora_module(linear)
    calls: list[tuple[int, ...]] = []
    original = torch.linalg.svdvals

    def svdvals(t: Tensor) -> Tensor:
        calls.append(tuple(t.shape))
        return original(t)

    with mock.patch.object(torch.linalg, "svdvals", svdvals):
        A, B = module.removal()
    assert calls == [(64, 64)] and A.shape == (64, 2560) and B.shape == (9728, 64), (calls, A.shape, B.shape)
    return "one decomposition, of 64 x 64, for a weight of 9728 x 2560"


def lora_module(linear: nn.Linear) -> Lora2rLinear:
    module = Lora2rLinear(linear, "up_proj", AdapterState(removal_seed=0), rank=32, seed=1, fold=False)
    with torch.no_grad():
        module.A.add_(0.01)
    return module


if __name__ == "__main__":
    gate.main()
