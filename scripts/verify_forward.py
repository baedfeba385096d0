"""The adapter's masked forward: what a route does to values and gradients, against its formula in plain autograd.

Invariants, in fp64 on a tiny Qwen3:
- q_value 0 is the deploy view's forward, 1 is the full view's, a fraction is the formula's; folded and unfolded;
- the gradients of every preset and mask kind, alone and mixed in one batch, equal autograd's with `.detach()` written
  rollout by rollout, folded and unfolded;
- activation and parameter masks give the same values, differ in every layer before the last adapted linear and not in
  it, and both leave exactly 0 in a masked block;
- packed rows: every token has its own rollout's factors, in values and in the gradients of inputs, factors and q_value;
- activation checkpointing changes no gradient; a recorder gets what autograd would have put into `.grad`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from _gate import Gate
from _models import Gradients, adapted, block_grads, largest, lora, plain_logps, step_of
from _plain_route import Kind, Numbers, PlainRouted, Reference
from vgrout.adapter import AdapterConfig, attach
from vgrout.adapter import lora2r as lora2r_module
from vgrout.adapter.base import Adapter
from vgrout.adapter.gradients import BlockSums, PerRollout
from vgrout.adapter.route import Route
from vgrout.adapter.tokens import TokenIndex
from vgrout.policy import Policy, make_batch
from vgrout.types import Rollout

gate = Gate(__doc__)
T = 0.8
Triple = tuple[float, float, float]
"""(q_value, q_grad, d_grad)"""
ROWS: list[Rollout] = [r for r in step_of([[1.0, 0.0, 2.0, 0.5, 0.1, 0.2]]).rollouts if r.view == "full"]
N = len(ROWS)
PRESETS: dict[str, Triple] = {
    "mid": (1.0, 1.0, 1.0),
    "hack": (1.0, 1.0, 0.0),
    "clean detached": (1.0, 0.0, 1.0),
    "clean zeroed": (0.0, 0.0, 1.0),
    "as sampled in deploy": (0.0, 1.0, 1.0),
    "soft published": (0.3, 1.0, 0.7),
    "soft detached": (1.0, 0.3, 0.7),
    "all fractions": (0.6, 0.4, 0.2),
}
KINDS: tuple[Kind, Kind] = ("parameter", "activation")


@cache
def stage(fold: bool = True) -> tuple[nn.Module, Adapter]:
    return adapted(fold=fold)


@cache
def reference() -> Reference:
    return Reference(stage()[1])


def route_of(numbers: tuple[Triple, ...], kind: Kind) -> Route:
    q_value, q_grad, d_grad = torch.tensor(numbers, dtype=torch.float64).T
    return Route(q_value=q_value, q_grad=q_grad, d_grad=d_grad, mask=kind)


@cache
def run(
    numbers: tuple[Triple, ...], kind: Kind, *, fold: bool = True, checkpointing: bool = False
) -> tuple[Tensor, Gradients]:
    """Log-probabilities of ROWS under their routes in one batch, and the gradients of the sum of their squares."""
    model, adapter = stage(fold) if not checkpointing else adapted(fold=fold)
    policy = Policy(model, adapter, temperature=T, chunk=5, checkpoint_activations=checkpointing)
    batch = make_batch(ROWS, range(N), device=torch.device("cpu"))
    route = route_of(numbers, kind)
    adapter.zero_grad()
    shares = route.block_weights(["full"] * N) if kind == "parameter" else torch.ones(N, 2)
    with adapter.routed(route, batch.index), adapter.recording(BlockSums(batch.index, shares)):
        logps = policy.logps(batch)
        logps.square().sum().backward()
    return logps.detach(), block_grads(adapter)


@cache
def by_formula(numbers: tuple[Triple, ...], kind: Kind) -> tuple[Tensor, Gradients]:
    reference().zero_grad()
    found = []
    for rollout, route in zip(ROWS, numbers, strict=True):
        logps = reference().logps(rollout, route, kind, T)
        if logps.requires_grad:
            logps.square().sum().backward()
        found.append(logps.detach())
    return torch.cat(found), reference().grads()


MIXED = tuple(list(PRESETS.values())[i] for i in (1, 3, 0, 2, 7))
CASES = {name: (numbers,) * N for name, numbers in PRESETS.items()} | {
    "five in one batch": MIXED,
    "other five": tuple(list(PRESETS.values())[i] for i in (6, 5, 1, 4, 3)),
}


@gate.invariant("q_value 0 is the deploy view's forward, 1 the full view's, a fraction the formula's")
def _():
    worst = 0.0
    for fold in (True, False):
        model, adapter = stage(fold)
        by_view = {}
        for view in ("full", "deploy"):
            with torch.no_grad(), adapter.view(view):
                by_view[view] = torch.cat([plain_logps(model, r, T) for r in ROWS])
        assert largest(by_view["full"], by_view["deploy"]) > 0.1
        for name, numbers in CASES.items():
            for kind in KINDS:
                values, _ = run(numbers, kind, fold=fold)
                worst = max(worst, largest(values, by_formula(numbers, kind)[0]))
                view = {0.0: "deploy", 1.0: "full"}.get(numbers[0][0])
                if view and name in PRESETS:
                    worst = max(worst, largest(values, by_view[view]))
    assert worst < 1e-11, worst
    return f"{len(CASES)} routes x 2 kinds x folded and not: log-probabilities within {worst:.1e}"


@gate.invariant("gradients of every preset and mask kind equal plain autograd with .detach() per rollout")
def _():
    worst = 0.0
    for name, numbers in CASES.items():
        for kind in KINDS:
            expected = by_formula(numbers, kind)[1]
            scale = max(float(g.abs().max()) for g in expected.values())
            assert scale > 0.01, name
            for fold in (True, False):
                got = run(numbers, kind, fold=fold)[1]
                worst = max(worst, max(largest(got[key], expected[key]) for key in expected) / scale)
    assert worst < 1e-11, worst
    return f"{len(CASES)} routes x 2 kinds x folded and not: within {worst:.1e} (relative)"


@gate.invariant("the mask kinds differ in every earlier linear, not in the last; a masked block gets exactly 0")
def _():
    last = lora(stage()[1])[-1].name
    assert last == "model.layers.1.mlp.down_proj", last
    zeros = 0
    for name in ("hack", "clean detached", "soft detached", "all fractions"):
        numbers = (PRESETS[name],) * N
        values, grads = zip(*(run(numbers, kind) for kind in KINDS), strict=True)
        assert torch.equal(*values), f"{name}: a stop-gradient changed a value"
        learns = {"deployed": PRESETS[name][2] > 0, "quarantine": PRESETS[name][0] * PRESETS[name][1] > 0}
        for block, key in grads[0]:
            a, b = (g[block, key] for g in grads)
            if not learns[block]:
                assert not a.any() and not b.any(), f"{name}: {block} {key} is not 0"
                zeros += 1
            elif last in key:
                assert largest(a, b) < 1e-12 * float(a.abs().max()), f"{name}: {key} of the last linear differs"
            else:
                assert largest(a, b) > 1e-3 * float(a.abs().max()), f"{name}: {block} {key} does not differ"
    for name in ("mid", "clean zeroed"):
        a, b = (run((PRESETS[name],) * N, kind)[1] for kind in KINDS)
        assert all(largest(a[key], b[key]) < 1e-11 for key in a), f"{name}: the kinds differ where nothing is cut"
    return f"4 routes where they differ, 2 where they agree, {zeros} block gradients exactly 0"


def packed_linear() -> tuple[nn.Module, lora2r_module.Lora2rLinear, Tensor, Tensor, Tensor]:
    """A linear alone, its owner-by-token index, input and output gradient; rollouts share rows and straddle them."""
    generator = torch.Generator().manual_seed(6)
    model = nn.ModuleDict({"q_proj": nn.Linear(6, 5)})
    (module,) = lora(attach(model, AdapterConfig(rank=2, fold=True)))
    model.double()
    module.load_weight(None)
    with torch.no_grad():
        for p in (module.A, module.B):
            p += torch.randn(p.shape, generator=generator).double()
    owner = torch.tensor([[2, 2, 0, 0, 0, -1], [1, 1, 3, 3, 0, -1]])
    x, c = (torch.randn(2, 6, n, generator=generator, dtype=torch.float64) for n in (6, 5))
    return model, module, owner, x, c * (owner >= 0)[..., None]


@gate.invariant("packed rows: values and all gradients, q_value's included, token by token as the formula has them")
def _():
    _, module, owner, x, c = packed_linear()
    adapter = Adapter([module], module.state, kind="lora2r", settings={"rank": 2, "init_seed": 0})
    index = TokenIndex(owner, 4)
    assert not index.row_is_rollout
    numbers = torch.rand(3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    original = nn.Linear(6, 5).double().requires_grad_(False)
    with torch.no_grad(), adapter.merged("base"):
        original.weight.copy_(module.weight)
        assert original.bias is not None and module.bias is not None
        original.bias.copy_(module.bias)
    worst = 0.0
    for kind in KINDS:
        plain = PlainRouted(original, module.A, module.B, module.A0, module.B0, now := Numbers(kind=kind))
        x_plain, q_plain = x.clone().requires_grad_(), numbers[0].clone().requires_grad_()
        out = torch.zeros(2, 6, 5, dtype=torch.float64)
        for i in range(4):
            now.q_value, now.q_grad, now.d_grad = q_plain[i], float(numbers[1, i]), float(numbers[2, i])
            out = torch.where((owner == i)[..., None], plain(x_plain), out)
        wanted = torch.autograd.grad((out * c).sum(), (x_plain, q_plain, plain.A, plain.B))
        x_ours, q_ours = x.clone().requires_grad_(), numbers[0].clone().requires_grad_()
        route = Route(q_value=q_ours, q_grad=numbers[1], d_grad=numbers[2], mask=kind)
        shares = torch.stack([numbers[2], numbers[1]], 1) if kind == "parameter" else torch.ones(4, 2)
        for recorder in (BlockSums(index, shares), PerRollout(index)):
            adapter.zero_grad()
            with adapter.routed(route, index), adapter.recording(recorder):
                y = module(x_ours)
                dx, dq = torch.autograd.grad((y * c).sum(), (x_ours, q_ours))
            if isinstance(recorder, PerRollout):
                recorder.route(shares)
            assert module.A.grad is not None and module.B.grad is not None
            got = (dx, dq, module.A.grad, module.B.grad)
            worst = max(worst, *(largest(a, b) for a, b in zip(got, wanted, strict=True)))
        worst = max(worst, largest(torch.where((owner >= 0)[..., None], y, 0), out))
    assert worst < 1e-12, worst
    return f"4 rollouts in 2 rows, 2 kinds, 2 recorders: within {worst:.1e}"


@gate.invariant("checkpointing changes no gradient; a recorder gets what autograd would have put into .grad")
def _():
    worst = 0.0
    for kind in KINDS:
        plain, repeated = run(MIXED, kind), run(MIXED, kind, checkpointing=True)
        worst = max(worst, largest(plain[0], repeated[0]), *(largest(plain[1][k], repeated[1][k]) for k in plain[1]))
    model, adapter = stage()
    batch = make_batch(ROWS, range(N), device=torch.device("cpu"))
    recorded = run(MIXED, "activation")[1]
    adapter.zero_grad()
    with adapter.routed(route_of(MIXED, "activation"), batch.index):
        Policy(model, adapter, temperature=T, chunk=5).logps(batch).square().sum().backward()
    own = block_grads(adapter)
    worst = max(worst, *(largest(own[k], recorded[k]) for k in own))
    assert worst < 1e-10 and max(float(g.abs().max()) for g in own.values()) > 1, worst
    return f"within {worst:.1e}"


if __name__ == "__main__":
    gate.main()
