"""Virtual copies in the adapters' formulas, whose derivatives are what rollouts and tokens are told apart by: a diagonal
between A and B (lora2r), an addition to delta and delta_q (delta_s). By autograd and by central differences.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _routing import STEP, Basis, Kind, T, stage
from vgrout.adapter.base import Adapter
from vgrout.adapter.delta_s import DeltaSLinear
from vgrout.adapter.linear import AdaptedLinear
from vgrout.adapter.lora2r import Lora2rLinear
from vgrout.types import Rollout, View


def _virtual(module: AdaptedLinear, view: View, c: Tensor, c_q: Tensor | float, x: Tensor) -> Tensor:
    """The module's output by its formula, with a diagonal c between A and B, or with c added to delta and c_q to delta_q;
    c is per row, or per row and token."""
    c = c if c.ndim == 3 else c[:, None]
    y = F.linear(x, module.weight, module.bias)
    if isinstance(module, Lora2rLinear):
        A, B, r = module.A, module.B, module.rank
        if view == "deploy":
            A, B = torch.cat([A[:r], module.A0[r:]]), torch.cat([B[:, :r], module.B0[:, r:]], dim=1)
        y = y + ((x @ A.T) * c) @ B.T
        return y if module.fold else y - x @ module.A0.T @ module.B0.T
    assert isinstance(module, DeltaSLinear)
    h, Q = x @ module.Vh.T, torch.eye(module.rank, dtype=torch.float64)
    if module.rotation is not None:
        Q = module.rotation.double()(Q).T
    z = (module.delta_d + c) * h
    if view == "full":
        z = z + ((module.delta_q + c_q) * (h @ Q.T)) @ Q
    return y + z @ module.U.T


def neutral(module: AdaptedLinear, *shape: int) -> Tensor:
    """The virtual copy that changes nothing."""
    if isinstance(module, Lora2rLinear):
        return torch.ones(*shape, 2 * module.rank, dtype=torch.float64)
    return torch.zeros(*shape, module.rank, dtype=torch.float64)


@contextlib.contextmanager
def virtual(
    adapter: Adapter, view: View, c: dict[str, Tensor], c_q: dict[str, Tensor] | None = None
) -> Generator[None]:
    """The adapter's modules by their formula, with these virtual copies in them."""
    for m in adapter.modules:
        m.forward = functools.partial(_virtual, m, view, c[m.name], c_q[m.name] if c_q else 0.0)
    try:
        yield
    finally:
        for m in adapter.modules:
            del m.forward


def sums(model: nn.Module, adapter: Adapter, r: Rollout, copies: int = 1) -> tuple[Tensor, Tensor]:
    """Sums over the completion's tokens of log-probability and of k3 to the base, for copies of one rollout in a batch.
    To be called inside `virtual`; the base is the original model."""
    tokens = torch.tensor([r.prompt_ids + r.completion_ids]).expand(copies, -1)
    start, targets = len(r.prompt_ids), tokens[:, len(r.prompt_ids) :, None]

    def logps() -> Tensor:
        logits = model(input_ids=tokens, use_cache=False).logits / T
        return logits[:, start - 1 : -1].log_softmax(-1).gather(2, targets).squeeze(2)

    new = logps()
    forwards = [m.__dict__.pop("forward") for m in adapter.modules]
    with torch.no_grad(), adapter.view("base"):
        reference = logps()
    for m, forward in zip(adapter.modules, forwards, strict=True):
        m.forward = forward
    d = reference - new
    return new.sum(1), (d.exp() - d - 1).sum(1)


@functools.cache
def probe_by_autograd(kind: Kind, row: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Per module, the derivatives in the virtual copy of (sum of log-probabilities, sum of k3) of a row of the step, in
    its sampling view."""
    model, adapter, _ = stage(kind)
    c = {m.name: neutral(m, 1).requires_grad_() for m in adapter.modules}
    with virtual(adapter, STEP.rollouts[row].view, c):
        values = sums(model, adapter, STEP.rollouts[row])
    logp, kl = (torch.autograd.grad(v, list(c.values()), retain_graph=True) for v in values)
    return {name: (u[0], k[0]) for name, u, k in zip(c, logp, kl, strict=True)}


Tokens = dict[str, dict[str, Tensor]]
"""By block and module: a gradient per token."""


def tokens_by_autograd(rollout: Rollout, view: View, basis: Basis = "shared") -> tuple[Tokens, Tokens]:
    """delta_s: of the same two sums, the derivatives in a copy of delta and of delta_q for each token."""
    model, adapter, _ = stage("delta_s", basis=basis)
    length = len(rollout.prompt_ids) + len(rollout.completion_ids)
    c, c_q = ({m.name: neutral(m, 1, length).requires_grad_() for m in adapter.modules} for _ in range(2))
    with virtual(adapter, view, c, c_q):
        values = sums(model, adapter, rollout)
    found = []
    for value in values:
        grads = torch.autograd.grad(value, [*c.values(), *c_q.values()], retain_graph=True, allow_unused=True)
        blocks = {"deployed": grads[: len(c)], "quarantine": grads[len(c) :]}
        zero = {name: torch.zeros_like(t[0]) for name, t in c.items()}
        found.append(
            {b: {n: zero[n] if g is None else g[0] for n, g in zip(c, own, strict=True)} for b, own in blocks.items()}
        )
    return found[0], found[1]


def differences(kind: Kind, row: int, step: float = 1e-4, **options: Any) -> dict[str, Tensor]:
    """Central differences of the summed log-probability in every coordinate: one copy of the rollout for either end."""
    model, adapter, _ = stage(kind, **options)
    sizes = [(m.name, neutral(m)) for m in adapter.modules]
    copies = 2 * sum(len(c) for _, c in sizes)
    at, c, found = 0, {}, {}
    for name, c0 in sizes:
        c[name] = c0.repeat(copies, 1)
        for k in range(len(c0)):
            c[name][at + 2 * k, k] += step
            c[name][at + 2 * k + 1, k] -= step
        at += 2 * len(c0)
    with torch.no_grad(), virtual(adapter, STEP.rollouts[row].view, c):
        values, _ = sums(model, adapter, STEP.rollouts[row], copies)
    for name, c0 in sizes:
        ends, values = values[: 2 * len(c0)], values[2 * len(c0) :]
        found[name] = (ends[0::2] - ends[1::2]) / (2 * step)
    return found
