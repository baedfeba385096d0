"""Advantages, log-probabilities, loss, KL, schedule and optimizer, by hand.

Invariants:
- group advantages by hand, with masked rows and groups without spread exactly 0, never NaN;
- the block baseline by hand: all clean, all hack, mixed, soft weights, masked rows;
- chunked log-probabilities equal log_softmax in value and gradient for every chunk size;
- the loss's denominator is G * max_new * P whatever the lengths; length normalisation by hand;
- the ratio is clipped as PPO says, for both signs of the advantage; k3 is 0 at equality and never negative;
- the first step's learning rate is above 0, the peak is the peak, the end is near 0;
- proposed updates equal torch's AdamW without decay; decay shrinks the net change and never drives it to -B0 A0;
- the norms of a block are those of its rows of A and columns of B.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from _gate import Gate
from _models import adapted, largest, lora
from vgrout.grpo import GrpoConfig, advantage, has_spread, kl_k3, policy_loss, token_logps, token_weights
from vgrout.optim import OptimConfig, Optimizer, learning_rate

gate = Gate(__doc__)
R = torch.tensor([[3.5, 0.5, 0.5, 3.5], [0.5, 0.5, 0.5, 0.5], [0.0, 3.5, 0.5, 3.5]])
ALL = torch.ones(3, 4, dtype=torch.bool)


def close(got: torch.Tensor, expected: list[list[float]]) -> float:
    error = largest(got, torch.tensor(expected))
    assert error < 1e-6 and bool(torch.isfinite(got).all()), (got, expected)
    return error


@gate.invariant("group advantages by hand, masked and zero-spread rows exactly 0")
def _():
    a = advantage(R, ALL)
    close(a, [[1.5, -1.5, -1.5, 1.5], [0, 0, 0, 0], [-1.875, 1.625, -1.375, 1.625]])
    masked = ALL.clone()
    masked[0, 0] = masked[0, 3] = masked[2, 0] = False
    a = advantage(R, masked)
    close(a, [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1.0, -2.0, 1.0]])
    assert has_spread(R, masked).tolist() == [False, False, True]
    for garbage in (float("nan"), float("inf"), -1e30):
        unread = torch.where(masked, R, garbage)
        for d in (None, torch.rand(3, 4)):
            got = advantage(unread, masked, deployed=d, std_norm=d is None)
            assert torch.equal(got, advantage(R * masked, masked, deployed=d, std_norm=d is None)), (garbage, got)
    nobody = advantage(R, torch.zeros(3, 4, dtype=torch.bool))
    assert not nobody.any() and bool(torch.isfinite(nobody).all()), nobody
    with_std = advantage(R, ALL, std_norm=True)
    std = torch.tensor([3.5, 0.5, 0.5, 3.5]).std()
    close(with_std[:1], [(torch.tensor([1.5, -1.5, -1.5, 1.5]) / (std + 1e-4)).tolist()])
    assert not with_std[1].any()
    return "3 groups; with masks (whatever the masked rewards are), without any row, with the standard deviation"


@gate.invariant("the block baseline by hand")
def _():
    def block(deployed: list[float], keep: torch.Tensor = ALL) -> torch.Tensor:
        d = torch.ones(3, 4)
        d[0] = torch.tensor(deployed)
        return advantage(R, keep, deployed=d)[:1]

    close(block([1, 1, 1, 1]), [[1.5, -1.5, -1.5, 1.5]])
    close(block([0, 0, 0, 0]), [[1.5, -1.5, -1.5, 1.5]])
    # Row 0 is a hack: it keeps the group's mean 2; the others are centred on their own, (0.5 + 0.5 + 3.5) / 3 = 1.5.
    close(block([0, 1, 1, 1]), [[1.5, -1.0, -1.0, 2.0]])
    # Soft shares: the mean is (0.5 * 3.5 + 0.5 + 0.25 * 0.5 + 3.5) / 2.75.
    mean = (0.5 * 3.5 + 0.5 + 0.25 * 0.5 + 3.5) / 2.75
    close(block([0.5, 1, 0.25, 1]), [[3.5 - mean, 0.5 - mean, 0.5 - mean, 3.5 - mean]])
    masked = ALL.clone()
    masked[0, 1] = False
    close(block([0, 1, 1, 1], masked), [[1.0, 0.0, -1.5, 1.5]])
    sums = block([0, 1, 1, 1])[0, 1:].sum(), advantage(R, ALL)[0, 1:].sum()
    assert abs(float(sums[0])) < 1e-6 and float(sums[1]) == -1.5
    return "clean rows sum to 0 under `block` and to -1.5 under `group`"


@gate.invariant("chunked log-probabilities equal log_softmax, in value and gradient")
def _():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    head = torch.randn(23, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 23, (11,), generator=generator)
    weight = torch.randn(11, generator=generator, dtype=torch.float64)

    x = hidden.clone().requires_grad_()
    expected = (x @ head.T / 0.7).log_softmax(-1)[torch.arange(11), targets]
    (expected * weight).sum().backward()
    worst = 0.0
    for chunk in (1, 2, 3, 10, 11, 1000):
        y = hidden.clone().requires_grad_()
        got = token_logps(y, head, targets, temperature=0.7, chunk=chunk)
        (got * weight).sum().backward()
        assert x.grad is not None and y.grad is not None
        worst = max(worst, largest(got, expected), largest(x.grad, y.grad))
    assert worst < 1e-12, worst
    none = token_logps(hidden[:0], head, targets[:0], temperature=0.7, chunk=4)
    assert len(none) == 0
    return f"6 chunk sizes, largest error {worst:.1e} (fp64)"


@gate.invariant("the denominator is fixed; length normalisation by hand")
def _():
    owner, lengths = torch.tensor([0, 0, 0, 1]), torch.tensor([3, 1])
    config = GrpoConfig(prompts_per_step=2, group_size=4)
    fixed = token_weights(owner, lengths, max_new=10, config=config)
    assert torch.allclose(fixed, torch.full((4,), 1 / 80))
    shorter = token_weights(owner[:1], torch.tensor([1]), max_new=10, config=config)
    assert torch.allclose(shorter, torch.full((1,), 1 / 80)), "a shorter completion must not weigh more per token"
    normed = token_weights(
        owner, lengths, max_new=10, config=GrpoConfig(prompts_per_step=2, group_size=4, length_norm=True)
    )
    assert torch.allclose(normed, torch.tensor([1 / 24, 1 / 24, 1 / 24, 1 / 8]))
    return "1/80 a token for G 4, max_new 10, P 2"


@gate.invariant("ratio clip and k3 by hand")
def _():
    new = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]).log()
    A = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    got = policy_loss(new, torch.zeros(5), A, clip=0.2)
    by_hand = torch.tensor([-1.2, 1.5, -0.5, 0.8, -2.2])
    assert largest(got, by_hand) < 1e-6, got
    x = torch.tensor([0.3, -0.2, 0.0], requires_grad=True)
    kl = kl_k3(x, torch.tensor([0.0, 0.0, 0.0]))
    assert largest(kl, torch.tensor([math.exp(-0.3) + 0.3 - 1, math.exp(0.2) - 0.2 - 1, 0.0])) < 1e-6
    assert bool((kl_k3(torch.randn(500), torch.randn(500)) >= 0).all())
    kl.sum().backward()
    assert x.grad is not None and largest(x.grad, 1 - (-x.detach()).exp()) < 1e-6 and float(x.grad[2]) == 0
    return "5 ratios, both signs; k3 and its gradient at 3 points"


@gate.invariant("learning rate: first above 0, peak, end")
def _():
    steps = OptimConfig(lr=1.0, warmup_steps=4)
    rates = [learning_rate(s, 20, steps) for s in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert abs(rates[12] - 0.5) < 1e-9 and 0 < rates[-1] < 0.02
    fraction = [learning_rate(s, 20, OptimConfig(lr=1.0, warmup_frac=0.2)) for s in range(20)]
    assert fraction == rates
    short = [learning_rate(s, 2, OptimConfig(lr=1.0, warmup_steps=10)) for s in range(2)]
    assert short == [0.5, 1.0], short
    flat = [learning_rate(s, 20, OptimConfig(lr=1.0, warmup_steps=4, schedule="constant")) for s in range(20)]
    assert flat[:4] == rates[:4] and set(flat[4:]) == {1.0}, flat
    return f"first {rates[0]}, peak {max(rates)}, last {rates[-1]:.4f} of 1"


@gate.invariant("proposed updates equal torch's AdamW without decay; clipping by hand")
def _():
    _, adapter = adapted(double=False)
    config = OptimConfig(lr=0.01, weight_decay=0.1, grad_clip=1.0)
    mine = Optimizer(adapter, config)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in adapter.parameters()]
    reference = torch.optim.AdamW(copies, lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    worst = 0.0
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(adapter.parameters(), copies, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        whole = torch.cat([q.grad.flatten() for q in copies if q.grad is not None]).norm()
        for q in copies:
            assert q.grad is not None
            q.grad /= whole
        assert abs(mine.clip() - float(whole)) < 1e-3 * float(whole)
        adapter.apply(mine.propose(0.01), decay=0.0)
        reference.step()
        worst = max(worst, max(largest(p, q) for p, q in zip(adapter.parameters(), copies, strict=True)))
    assert worst < 1e-5, worst
    return f"largest difference {worst:.1e} after 5 steps"


@gate.invariant("block norms, of gradients and of the way moved, are those of the block's rows of A and columns of B")
def _():
    _, adapter = adapted()
    for i, p in enumerate(adapter.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
    worst = 0.0
    for block, half in (("deployed", 0), ("quarantine", 1)):
        pieces: dict[str, list[Tensor]] = {"grad": [], "moved": []}
        for m in lora(adapter):
            assert m.A.grad is not None and m.B.grad is not None
            pieces["grad"] += [m.A.grad.chunk(2)[half], m.B.grad.chunk(2, dim=1)[half]]
            pieces["moved"] += [(m.A - m.A0).chunk(2)[half], (m.B - m.B0).chunk(2, dim=1)[half]]
        for of, tensors in pieces.items():
            by_hand = float(torch.cat([t.detach().flatten() for t in tensors]).norm())
            worst = max(worst, abs(adapter.block_norm(block, of) / by_hand - 1))
    assert worst < 1e-12, worst
    return f"2 blocks x 2 norms within {worst:.1e}"


@gate.invariant("decay shrinks the net change of A and B exactly, never towards -B0 A0")
def _():
    _, adapter = adapted(double=False)
    before = {n: (t.value - t.init).clone() for n, t in adapter.trainables()}
    module = lora(adapter)[0]
    first = float(module.delta("full").norm())
    zero = [torch.zeros_like(p) for p in adapter.parameters()]
    for _ in range(100):
        adapter.apply(zero, decay=0.05)
    worst = max(largest(t.value - t.init, before[n] * 0.95**100) for n, t in adapter.trainables())
    last, wrong = float(module.delta("full").norm()), float((module.B0 @ module.A0).norm())
    assert worst < 1e-5 and last < 0.02 * first < wrong, (worst, first, last)
    return f"after 100 steps within {worst:.1e} of 0.95^100; net change {first:.2f} -> {last:.1e} (B0 A0 has norm {wrong:.1f})"


if __name__ == "__main__":
    gate.main()
