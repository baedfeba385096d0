"""Block gradients: each rollout's own, from one backward, and what a route does to them.

Invariants, in fp64 against autograd on one rollout at a time:
- per-rollout gradients sum to the plain gradient, and each equals that of its rollout alone;
- the same where a row holds two rollouts, or a rollout lies in another row than its number;
- the c-probe is the derivative in a diagonal between A and B, in the view that the backward ran in;
- per label and view, the declared blocks get exactly zero, and the others exactly the plain gradient;
- fractional weights give the weighted sum of single-rollout gradients;
- recording changes no gradient that reaches earlier layers;
- activation checkpointing changes no gradient, in either view;
- a route refuses entries outside [0, 1] and NaN.
"""

from __future__ import annotations

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _gate import Gate
from _models import Gradients, adapted, block_grads, largest, lora, qwen3, step_of
from vgrout.adapter import AdapterConfig, attach
from vgrout.adapter.base import Adapter
from vgrout.adapter.gradients import BlockSums, PerRollout
from vgrout.adapter.lora2r import Lora2rLinear
from vgrout.adapter.route import Route, constant, three_way
from vgrout.adapter.tokens import TokenIndex
from vgrout.policy import Policy, make_batch
from vgrout.types import View

gate = Gate(__doc__)
VIEWS: tuple[View, ...] = ("full", "deploy")
TOKENS = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(1))
WEIGHT = torch.rand(3, 9, 61, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    """A loss that is a sum over rows, with a different gradient for each."""
    return (model(input_ids=TOKENS[rows], use_cache=False).logits * WEIGHT[rows]).square().sum()


def plain(model: nn.Module, adapter: Adapter, row: int | None, view: View = "full") -> Gradients:
    """Autograd's own gradients of one row's loss (None: of all rows)."""
    adapter.zero_grad()
    with adapter.view(view):
        loss_of(model, torch.arange(3) if row is None else torch.tensor([row])).backward()
    return block_grads(adapter)


def index() -> TokenIndex:
    return TokenIndex(torch.arange(3)[:, None].expand(3, 9).contiguous(), 3)


@gate.invariant("per-rollout gradients sum to the plain gradient, and each is its own")
def _():
    model, adapter = adapted()
    error_sum = error_own = scale = 0.0
    for view in VIEWS:
        whole = plain(model, adapter, None, view)
        alone = [plain(model, adapter, row, view) for row in range(3)]
        recorder = PerRollout(index())
        adapter.zero_grad()
        with adapter.view(view), adapter.recording(recorder):
            loss_of(model, torch.arange(3)).backward()
        # In the deploy view the quarantine's factors are its init, which is no parameter.
        for block in ("deployed", "quarantine") if view == "full" else ("deployed",):
            for module, own in recorder.kept.values():
                for t, part in module.parts(block):
                    mine, name = own[t.key][(slice(None), *part)], f"{module.name}.{t.key}"
                    error_sum = max(error_sum, largest(mine.sum(0), whole[block, name]))
                    error_own = max(error_own, *(largest(mine[row], alone[row][block, name]) for row in range(3)))
        scale = max(scale, *(float(g.abs().max()) for g in whole.values()))
    assert error_sum < 1e-10 * scale and error_own < 1e-10 * scale, (error_sum, error_own)
    return f"largest error {error_sum:.1e} of the sum, {error_own:.1e} of one rollout (gradients up to {scale:.1f})"


@gate.invariant("rollouts may share a row, or lie in another row than their number")
def _():
    u, v = torch.randn(2, 6, 4), torch.randn(2, 6, 5)
    packed = TokenIndex(torch.tensor([[2, 2, 0, 0, 0, -1], [1, 1, 1, 3, 3, 3]]), 4)
    swapped = TokenIndex(torch.tensor([[1] * 6, [0] * 6]), 2)
    error = largest(swapped.segment_outer(u, v), torch.stack([u[1].T @ v[1], u[0].T @ v[0]]))
    expected = torch.tensor([[0.3, 0.3, 0.1, 0.1, 0.1, 0.0], [0.2, 0.2, 0.2, 0.4, 0.4, 0.4]])
    error = max(error, largest(packed.spread(torch.tensor([0.1, 0.2, 0.3, 0.4])).squeeze(-1), expected))
    assert error < 1e-5, error
    return f"largest error {error:.1e}"


@gate.invariant("packed rows: each rollout's gradients, probe and share are its own, in both recorders")
def _():
    generator = torch.Generator().manual_seed(6)
    model = nn.ModuleDict({"q_proj": nn.Linear(6, 5)})
    (module,) = lora(attach(model, AdapterConfig(rank=2)))
    model.double()
    owner = torch.tensor([[2, 2, 0, 0, 0, -1], [1, 1, 3, 3, 0, -1]])
    packed = TokenIndex(owner, 4)
    x, c = (torch.randn(2, 6, n, generator=generator, dtype=torch.float64) for n in (6, 5))
    shares = torch.rand(4, 2, generator=generator, dtype=torch.float64)
    by_rollout, probes = [], []
    for i in range(4):
        middle = torch.ones(4, dtype=torch.float64, requires_grad=True)
        out = ((x @ module.A.T) * middle) @ module.B.T
        loss = (out * c)[owner == i].sum()
        *grads, probe = torch.autograd.grad(loss, (module.A, module.B, middle))
        by_rollout.append(grads)
        probes.append(probe)
    halves = shares.repeat_interleave(2, dim=1)  # rank 2 per block
    want_A = torch.stack([halves[i][:, None] * by_rollout[i][0] for i in range(4)]).sum(0)
    want_B = torch.stack([halves[i] * by_rollout[i][1] for i in range(4)]).sum(0)
    error = 0.0
    for recorder in (PerRollout(packed), BlockSums(packed, shares)):
        module.A.grad = module.B.grad = None
        module.state.recorder = recorder
        (module(x) * c).sum().backward()  # padding carries a gradient here, and must reach nobody
        if isinstance(recorder, PerRollout):
            for found, wanted in zip(recorder.kept["q_proj"][1].values(), zip(*by_rollout), strict=True):
                error = max(error, largest(found, torch.stack(wanted)))
            error = max(error, largest(recorder.c_probe()["q_proj"], torch.stack(probes)))
            recorder.route(shares)
        assert module.A.grad is not None and module.B.grad is not None
        error = max(error, largest(module.A.grad, want_A), largest(module.B.grad, want_B))
    assert error < 1e-12, error
    return f"4 rollouts in 2 rows, largest error {error:.1e}"


def with_diagonal(module: Lora2rLinear, view: View, c: Tensor, x: Tensor) -> Tensor:
    """The module's output with the diagonal c of each row between the A and the B of the view."""
    A, B, r = module.A, module.B, module.rank
    if view == "deploy":
        A, B = torch.cat([A[:r], module.A0[r:]]), torch.cat([B[:, :r], module.B0[:, r:]], dim=1)
    return F.linear(x, module.weight, module.bias) + ((x @ A.T) * c[:, None]) @ B.T


@gate.invariant("the c-probe is the derivative in a diagonal between A and B, in the view of the backward")
def _():
    model, adapter = adapted()
    exact = coarse = 0.0
    for view in VIEWS:
        recorder = PerRollout(index())
        with adapter.view(view), adapter.recording(recorder):
            loss_of(model, torch.arange(3)).backward()
        probe = recorder.c_probe()  # asked for outside the view
        diagonals = {m.name: torch.ones(3, 2 * m.rank, dtype=torch.float64, requires_grad=True) for m in lora(adapter)}
        for m in lora(adapter):
            m.forward = functools.partial(with_diagonal, m, view, diagonals[m.name])
        expected = torch.autograd.grad(loss_of(model, torch.arange(3)), list(diagonals.values()))
        for (name, c), want in zip(diagonals.items(), expected, strict=True):
            exact = max(exact, largest(probe[name], want) / float(want.abs().max()))
            for k in (0, c.shape[1] - 1):
                ends = []
                for step in (1e-5, -2e-5):
                    c.data[1, k] += step
                    with torch.no_grad():
                        ends.append(float(loss_of(model, torch.arange(3))))
                c.data[1, k] += 1e-5
                slope = (ends[0] - ends[1]) / 2e-5
                coarse = max(coarse, abs(slope - float(probe[name][1, k])) / float(want.abs().max()))
        for m in lora(adapter):
            del m.forward
    assert exact < 1e-9 and coarse < 1e-4, (exact, coarse)
    return f"2 views x 14 modules: within {exact:.1e} of autograd, {coarse:.1e} of finite differences (relative)"


LABELS = {
    "mid": (constant(3, deployed=1.0, quarantine=1.0), {"deployed", "quarantine"}),
    "hack": (three_way(hack=torch.ones(3, dtype=torch.bool), clean=torch.zeros(3, dtype=torch.bool)), {"quarantine"}),
    "clean": (three_way(hack=torch.zeros(3, dtype=torch.bool), clean=torch.ones(3, dtype=torch.bool)), {"deployed"}),
}
LEARNS_IN_DEPLOY = {"mid": {"deployed"}, "hack": set(), "clean": {"deployed"}}


@gate.invariant("per label and view: which blocks are zero, which equal the plain gradient")
def _():
    model, adapter = adapted()
    checked = 0
    for label, (route, in_full) in LABELS.items():
        for view, learns in (("full", in_full), ("deploy", LEARNS_IN_DEPLOY[label])):
            expected = plain(model, adapter, None, view)
            adapter.zero_grad()
            weights = route.block_weights([view] * 3)
            with adapter.view(view), adapter.recording(BlockSums(index(), weights)):
                loss_of(model, torch.arange(3)).backward()
            for (block, name), got in block_grads(adapter).items():
                if block in learns:
                    assert float(got.abs().max()) > 0, f"{label} in {view}: {block} {name} is zero"
                    assert largest(got, expected[block, name]) < 1e-9 * float(got.abs().max() + 1), (label, view, name)
                else:
                    assert not got.any(), f"{label} in {view}: {block} {name} must be exactly zero"
                checked += 1
    assert all(not g.any() for (b, _), g in plain(model, adapter, None, "deploy").items() if b == "quarantine")
    return f"{checked} block gradients of 3 labels x 2 views"


@gate.invariant("fractional weights give the weighted sum of single-rollout gradients, both ways")
def _():
    model, adapter = adapted()
    alone = [plain(model, adapter, row) for row in range(3)]
    weights = torch.tensor([[0.2, 0.0], [1.0, 0.7], [0.0, 0.4]])
    worst = 0.0
    for recorder in (BlockSums(index(), weights), PerRollout(index())):
        adapter.zero_grad()
        with adapter.recording(recorder):
            loss_of(model, torch.arange(3)).backward()
        if isinstance(recorder, PerRollout):
            recorder.route(weights)
        for (block, name), got in block_grads(adapter).items():
            column = ("deployed", "quarantine").index(block)
            by_hand = sum(float(weights[row, column]) * alone[row][block, name] for row in range(3))
            assert isinstance(by_hand, Tensor)
            worst = max(worst, largest(got, by_hand) / float(by_hand.abs().max() + 1e-12))
    assert worst < 1e-6, worst
    return f"largest relative error {worst:.1e}"


@gate.invariant("recording leaves what reaches earlier layers unchanged")
def _():
    model, adapter = adapted()
    embeddings = torch.randn(3, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    grads = []
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    for recording in (
        contextlib.nullcontext(),
        adapter.recording(BlockSums(index(), weights)),
        adapter.recording(PerRollout(index())),
    ):
        x = embeddings.clone().requires_grad_()
        adapter.zero_grad()
        with recording:
            (model(inputs_embeds=x, use_cache=False).logits * WEIGHT).square().sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    error = max(largest(grads[0], g) for g in grads[1:])
    assert error < 1e-9 * float(grads[0].abs().max()), error
    return f"largest difference {error:.1e} of gradients up to {float(grads[0].abs().max()):.1f}"


@gate.invariant("activation checkpointing changes no gradient, in either view")
def _():
    step = step_of([[1.0, 0.0, 1.0, 0.0]])
    results, repeats = [], []
    for checkpointing in (False, True):
        model = qwen3()
        adapter = attach(model, AdapterConfig(rank=3))
        model.double()
        with torch.no_grad():
            for i, p in enumerate(adapter.parameters()):
                p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).double()
        policy = Policy(model, adapter, temperature=1.0, chunk=3, checkpoint_activations=checkpointing)
        forwards = count_forwards(model)
        grads = []
        for rows, view in (((0, 1, 2), "full"), ((3,), "deploy")):
            adapter.zero_grad()
            batch = make_batch(step.rollouts, rows, device=torch.device("cpu"))
            assert batch.view == view
            with adapter.view(batch.view), adapter.recording(BlockSums(batch.index, torch.ones(len(rows), 2))):
                policy.logps(batch).square().sum().backward()
            grads.append(block_grads(adapter))
        results.append(grads)
        repeats.append(forwards[0])
    error = max(largest(a[key], b[key]) for a, b in zip(*results) for key in a)
    size = max(float(g.abs().max()) for g in results[0][1].values())
    assert error < 1e-9 and size > 0, (error, size)
    assert repeats == [4, 8], f"2 layers x 2 batches must run once without and twice with checkpointing, ran {repeats}"
    return f"largest difference {error:.1e} of gradients up to {size:.2f}; layer forwards {repeats[0]} and {repeats[1]}"


def count_forwards(model: nn.Module) -> list[int]:
    """A counter of decoder-layer forwards, repeated ones included."""
    count = [0]

    def seen(*_: object) -> None:
        count[0] += 1

    for name, module in model.named_modules():
        if name.endswith(".mlp"):
            module.register_forward_pre_hook(seen)
    return count


@gate.invariant("a route refuses entries outside [0, 1] and NaN")
def _():
    refused = 0
    for bad in (-0.1, 1.1, float("nan"), float("inf")):
        for kwargs in ({"q_grad": bad}, {"d_grad": bad}, {"q_value": bad}):
            rows = {name: torch.tensor([value]) for name, value in ({"q_grad": 1.0, "d_grad": 1.0} | kwargs).items()}
            try:
                Route(q_grad=rows["q_grad"], d_grad=rows["d_grad"], q_value=rows.get("q_value"))
            except ValueError as error:
                assert next(iter(kwargs)) in str(error)
                refused += 1
    assert refused == 12
    return "12 of 12 refused by name"


if __name__ == "__main__":
    gate.main()
