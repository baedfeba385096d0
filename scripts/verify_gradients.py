"""Block gradients: each rollout's own, from one backward, and what a route does to them.

Invariants, in fp64 against autograd on one rollout at a time:
- per-rollout gradients sum to the plain gradient, and each equals that of its rollout alone;
- the same where a row holds two rollouts, or a rollout lies in another row than its number;
- the c-probe equals finite differences of a diagonal between A and B;
- per label and view, the declared blocks get exactly zero, and the others exactly the plain gradient;
- fractional weights give the weighted sum of single-rollout gradients;
- recording changes no gradient that reaches earlier layers;
- activation checkpointing changes no gradient, in either view;
- a route refuses entries outside [0, 1] and NaN.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _gate import Gate
from _models import adapted, block_grads, largest, lora, qwen3, step_of
from vgrout.adapter import AdapterConfig, attach
from vgrout.adapter.base import Adapter
from vgrout.adapter.gradients import BlockSums, PerRollout, TokenIndex
from vgrout.adapter.lora2r import Lora2rLinear
from vgrout.adapter.route import Route, constant, three_way

gate = Gate(__doc__)
TOKENS = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(1))
WEIGHT = torch.rand(3, 9, 61, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    """A loss that is a sum over rows, with a different gradient for each."""
    return (model(input_ids=TOKENS[rows], use_cache=False).logits * WEIGHT[rows]).square().sum()


def plain(model: nn.Module, adapter: Adapter, row: int | None, view: str = "full") -> dict[tuple[str, str], Tensor]:
    """Autograd's own gradients of one row's loss (None: of all rows)."""
    adapter.zero_grad()
    with adapter.view(view):  # ty: ignore[invalid-argument-type]
        loss_of(model, torch.arange(3) if row is None else torch.tensor([row])).backward()
    return block_grads(adapter)


def index() -> TokenIndex:
    return TokenIndex(torch.arange(3)[:, None].expand(3, 9).contiguous(), 3)


@gate.invariant("per-rollout gradients sum to the plain gradient, and each is its own")
def _():
    model, adapter = adapted()
    whole = plain(model, adapter, None)
    alone = [plain(model, adapter, row) for row in range(3)]
    recorder = PerRollout(index())
    adapter.zero_grad()
    with adapter.recording(recorder):
        loss_of(model, torch.arange(3)).backward()
    error_sum = error_own = 0.0
    for module in lora(adapter):
        _, dA, dB = recorder.kept[module.name]
        for key, kept, parts in (("A", dA, (0,)), ("B", dB, (1,))):
            for block in ("deployed", "quarantine"):
                k = module.block_columns(block)
                mine = kept[:, k] if parts == (0,) else kept[..., k]
                error_sum = max(error_sum, largest(mine.sum(0), whole[block, f"{module.name}.{key}"]))
                for row in range(3):
                    error_own = max(error_own, largest(mine[row], alone[row][block, f"{module.name}.{key}"]))
    scale = max(float(g.abs().max()) for g in whole.values())
    assert error_sum < 1e-10 * scale and error_own < 1e-10 * scale, (error_sum, error_own)
    return f"largest error {error_sum:.1e} of the sum, {error_own:.1e} of one rollout (gradients up to {scale:.1f})"


@gate.invariant("rollouts may share a row, or lie in another row than their number")
def _():
    generator = torch.Generator().manual_seed(3)
    u = torch.randn(2, 6, 4, generator=generator)
    v = torch.randn(2, 6, 5, generator=generator)
    owner = torch.tensor([[2, 2, 0, 0, 0, -1], [1, 1, 1, 3, 3, 3]])
    packed = TokenIndex(owner, 4)
    assert not packed.row_is_rollout
    by_hand = torch.zeros(4, 4, 5)
    for row in range(2):
        for t in range(6):
            if owner[row, t] >= 0:
                by_hand[owner[row, t]] += torch.outer(u[row, t], v[row, t])
    error = largest(packed.segment_outer(u, v), by_hand)
    swapped = TokenIndex(torch.tensor([[1] * 6, [0] * 6]), 2)
    error = max(error, largest(swapped.segment_outer(u, v), torch.stack([u[1].T @ v[1], u[0].T @ v[0]])))
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = torch.tensor([[0.3, 0.3, 0.1, 0.1, 0.1, 0.0], [0.2, 0.2, 0.2, 0.4, 0.4, 0.4]])
    error = max(error, largest(packed.spread(weights).squeeze(-1), expected))
    assert error < 1e-5, error
    return f"largest error {error:.1e}"


@gate.invariant("the c-probe equals the gradient of a diagonal between A and B")
def _():
    model, adapter = adapted()
    recorder = PerRollout(index())
    adapter.zero_grad()
    with adapter.recording(recorder):
        loss_of(model, torch.arange(3)).backward()
    probe = recorder.c_probe()
    exact = coarse = 0.0
    for module in (lora(adapter)[0], lora(adapter)[9]):
        c = torch.ones(3, 2 * module.rank, dtype=torch.float64, requires_grad=True)

        def with_diagonal(x: Tensor, module: Lora2rLinear = module, c: Tensor = c) -> Tensor:
            return F.linear(x, module.weight) + F.linear(F.linear(x, module.A) * c[: len(x), None], module.B)

        module.forward = with_diagonal
        loss = loss_of(model, torch.arange(3))
        (expected,) = torch.autograd.grad(loss, c)
        with torch.no_grad():
            ends = []
            for step in (1e-2, -1e-2):
                c[1, 0] += step
                ends.append(float(loss_of(model, torch.arange(3))))
                c[1, 0] -= step
        del module.forward
        got = probe[module.name]
        exact = max(exact, largest(got, expected) / float(expected.abs().max()))
        coarse = max(coarse, abs((ends[0] - ends[1]) / 2e-2 - float(got[1, 0].detach())) / float(expected.abs().max()))
    assert exact < 1e-9 and coarse < 0.02, (exact, coarse)
    return f"largest relative error {exact:.1e} against autograd, {coarse:.1e} against finite differences"


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
    from vgrout.policy import Policy, make_batch

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
            values = {"q_grad": 1.0, "d_grad": 1.0} | kwargs
            try:
                Route(**{name: torch.tensor([value]) for name, value in values.items()})
            except ValueError as error:
                assert next(iter(kwargs)) in str(error)
                refused += 1
    assert refused == 12
    return "12 of 12 refused by name"


if __name__ == "__main__":
    gate.main()
