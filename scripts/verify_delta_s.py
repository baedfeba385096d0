"""The delta_s adapter (spec 3.2).

- at init every view is the original model bit for bit in fp32 and bf16, and the KL to base is exactly 0
- values and gradients of both bases, views and masks equal plain autograd through dense matrices
- per rollout and per token, the shares of a split add up to the whole gradient (shared basis)
- merged weights, rows of mixed views and the ablation agree with the adapted forward
- two blocks count as one change (a shrinkage control) where their vectors are equal in a shared basis, and nowhere else
- the step's gradient equals one rollout at a time, whatever a route says of whole blocks; blocks not trained get exactly 0
"""

from __future__ import annotations

import dataclasses
from typing import Literal
from unittest import mock

import torch
from torch import Tensor, nn

from _gate import Gate
from _models import adapted, alone, block_grads, largest, policy_of, qwen3, step_of
from vgrout.adapter import AdapterConfig, attach
from vgrout.adapter.base import Adapter
from vgrout.adapter.delta_s import DeltaSLinear
from vgrout.adapter.gradients import BlockSums, PerRollout, PerToken
from vgrout.adapter.route import Mask, Route
from vgrout.adapter.tokens import TokenIndex
from vgrout.grpo import GrpoConfig
from vgrout.interventions import INTERVENTIONS
from vgrout.types import View
from vgrout.update import update

gate = Gate(__doc__)
Basis = Literal["shared", "distinct"]
BASES: tuple[Basis, ...] = ("shared", "distinct")


def modules_of(adapter: Adapter) -> list[DeltaSLinear]:
    return [m for m in adapter.modules if isinstance(m, DeltaSLinear)]


@gate.invariant(
    "at init every view is the original model bit for bit, in fp32 and bf16, and its KL to base is exactly 0"
)
def _():
    tokens = torch.randint(0, 61, (3, 12), generator=torch.Generator().manual_seed(2))
    for dtype in (torch.float32, torch.bfloat16):
        for basis in BASES:
            model = qwen3().to(dtype)
            with torch.no_grad():
                before = model(input_ids=tokens).logits
            adapter = attach(model, AdapterConfig(kind="delta_s", quarantine_basis=basis))
            for view in ("full", "deploy", "base"):
                with torch.no_grad(), adapter.view(view):
                    assert torch.equal(model(input_ids=tokens).logits, before), (dtype, basis, view)
    return "2 dtypes x 2 bases x 3 views: difference exactly 0"


class Plain(nn.Module):
    """The formula with dense matrices; the route's numbers stand in `now` = (q_value, q_grad, d_grad, mask)."""

    def __init__(self, linear: nn.Linear, of: DeltaSLinear, now: dict[str, float | str]):
        super().__init__()
        self.linear, self.now = linear, now
        self.U, self.Vh = of.U.double(), of.Vh.double()
        m = self.U.shape[1]
        eye = torch.eye(m, dtype=torch.float64)
        self.Q = eye if of.rotation is None else of.rotation.double()(eye).T  # column j is Q e_j
        self.delta = nn.Parameter(of.delta_d.detach().double().clone())
        self.delta_q = nn.Parameter(of.delta_q.detach().double().clone())

    def forward(self, x: Tensor) -> Tensor:
        d, e, q = (float(self.now[k]) for k in ("d_grad", "q_grad", "q_value"))
        on_parameters = self.now["mask"] == "parameter"
        part = lambda t, share: share * t + (1 - share) * t.detach()  # noqa: E731
        delta, delta_q = (part(self.delta, d), part(self.delta_q, e)) if on_parameters else (self.delta, self.delta_q)
        dep = x @ (self.U @ delta.diag() @ self.Vh).T
        quar = x @ (self.U @ self.Q.T @ delta_q.diag() @ self.Q @ self.Vh).T
        if not on_parameters:
            dep, quar = part(dep, d), part(quar, e)
        return self.linear(x) + dep + q * quar


class Reference:
    """A model of its own with plain modules."""

    def __init__(self, adapter: Adapter):
        from _models import norms_in_fp64

        self.model = qwen3().double().requires_grad_(False)
        norms_in_fp64(self.model)
        self.now: dict[str, float | str] = {}
        self.modules = {}
        for m in modules_of(adapter):
            linear = self.model.get_submodule(m.name)
            assert isinstance(linear, nn.Linear)
            self.modules[m.name] = Plain(linear, m, self.now)
            parent, _, child = m.name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, self.modules[m.name])

    def run(self, tokens: Tensor, c: Tensor, **now: float | str) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of one row and the parameters' gradients of their product with c."""
        self.now.update(now)
        logits = self.model(input_ids=tokens).logits
        named = {
            f"{n}.{k}": p for n, m in self.modules.items() for k, p in (("delta", m.delta), ("delta_q", m.delta_q))
        }
        found = torch.autograd.grad((logits * c).sum(), list(named.values()), allow_unused=True)
        return logits.detach(), {
            name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)
        }


TOKENS = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(3))
C = torch.randn(3, 9, 61, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
INDEX = TokenIndex(torch.arange(3)[:, None].expand(3, 9), 3)


def gradients(adapter: Adapter) -> dict[str, Tensor]:
    return {
        f"{m.name}.{t.key}": t.value.grad for m in adapter.modules for t in m.trainables() if t.value.grad is not None
    }


@gate.invariant("values and gradients of both bases, all views and both masks equal autograd through dense matrices")
def _():
    worst = 0.0
    routes = [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (0.7, 0.4, 0.2)]
    kinds: tuple[Mask, ...] = ("parameter", "activation")
    for basis in BASES:
        model, adapter = adapted(kind="delta_s", basis=basis)
        reference = Reference(adapter)
        for (q, e, d), kind in ((r, k) for r in routes for k in kinds):
            by_row = [
                reference.run(TOKENS[i : i + 1], C[i], q_value=q, q_grad=e, d_grad=d, mask=kind) for i in range(3)
            ]
            n = torch.ones(3, dtype=torch.float64)
            route = Route(q_grad=e * n, d_grad=d * n, q_value=q * n, mask=kind)
            shares = route.block_weights(("full",) * 3) if kind == "parameter" else torch.ones(3, 2)
            adapter.zero_grad()
            with adapter.routed(route, INDEX), adapter.recording(BlockSums(INDEX, shares.double())):
                logits = model(input_ids=TOKENS).logits
                (logits * C).sum().backward()
            worst = max(worst, largest(logits, torch.cat([values for values, _ in by_row])))
            for name, got in gradients(adapter).items():
                wanted = sum(g[name] for _, g in by_row)
                assert isinstance(wanted, Tensor)
                worst = max(worst, largest(got, wanted) / (1 + float(wanted.abs().max())))
        for view in ("full", "deploy"):
            value = float(view == "full")
            wanted_logits, wanted_g = reference.run(TOKENS, C, q_value=value, q_grad=1.0, d_grad=1.0, mask="parameter")
            for recorded in (False, True):
                adapter.zero_grad()
                recorder = BlockSums(INDEX, torch.tensor([[1.0, value]] * 3, dtype=torch.float64))
                with adapter.view(view), mock.patch.object(adapter.state, "recorder", recorder if recorded else None):
                    logits = model(input_ids=TOKENS).logits
                    (logits * C).sum().backward()
                worst = max(worst, largest(logits, wanted_logits))
                worst = max(worst, *(largest(g, wanted_g[n]) / 100 for n, g in gradients(adapter).items()))
    assert worst < 1e-10, worst
    return f"2 bases x ({len(routes)} routes x 2 masks + 2 views, recorded and not): within {worst:.1e}"


@gate.invariant("per rollout and per token the shares of a split add up to the whole gradient (shared basis)")
def _():
    model, adapter = adapted(kind="delta_s")
    f = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    per_token = torch.rand(3, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def run(recorder: PerRollout | PerToken | BlockSums, weights: Tensor | None = None) -> dict[str, Tensor]:
        adapter.zero_grad()
        with adapter.view("full"), adapter.recording(recorder):
            (model(input_ids=TOKENS).logits * C).sum().backward()
        if isinstance(recorder, PerRollout | PerToken):
            assert weights is not None
            recorder.route(weights)
        return {name: g.clone() for name, g in gradients(adapter).items()}

    whole = run(BlockSums(INDEX, torch.ones(3, 2, dtype=torch.float64)))
    rollouts = run(PerRollout(INDEX), torch.stack([1 - f, f], dim=1))
    tokens = run(PerToken(), torch.stack([1 - per_token, per_token], dim=-1))
    spread = run(PerToken(), torch.stack([1 - f, f], dim=1)[:, None].expand(3, 9, 2))
    error = 0.0
    for m in adapter.modules:
        full = whole[f"{m.name}.delta"]
        assert torch.equal(full, whole[f"{m.name}.delta_q"]), "a shared basis gives both blocks the same gradient"
        for split in (rollouts, tokens, spread):
            assert largest(split[f"{m.name}.delta"], full) > 1e-3 * float(full.abs().max())
            error = max(error, largest(split[f"{m.name}.delta"] + split[f"{m.name}.delta_q"], full))
        error = max(error, *(largest(rollouts[k], spread[k]) for k in (f"{m.name}.delta", f"{m.name}.delta_q")))
    scale = max(float(g.abs().max()) for g in whole.values())
    assert error < 1e-12 * scale, (error, scale)
    return f"3 splits of gradients up to {scale:.0f}: kept + routed within {error:.1e}; equal shares agree both ways"


@gate.invariant("merged weights and rows of mixed views equal the adapted forward; deploy ablates the quarantine")
def _():
    worst = 0.0
    for basis in BASES:
        model, adapter = adapted(kind="delta_s", basis=basis)
        logits: dict[View, Tensor] = {}
        for view in ("full", "deploy", "base"):
            with torch.no_grad(), adapter.view(view):
                logits[view] = model(input_ids=TOKENS).logits
            with torch.no_grad(), adapter.merged(view):
                worst = max(worst, largest(model(input_ids=TOKENS).logits, logits[view]))
        rows: tuple[View, ...] = ("full", "deploy", "full")
        with torch.no_grad(), adapter.merged_rows(("full", "deploy")) as select:
            select(rows)
            mixed = model(input_ids=TOKENS).logits
        worst = max(worst, *(largest(mixed[i], logits[view][i]) for i, view in enumerate(rows)))
        assert largest(logits["full"], logits["deploy"]) > 0.05
        with torch.no_grad():
            for m in modules_of(adapter):
                m.delta_q.zero_()
            with adapter.view("full"):
                assert largest(model(input_ids=TOKENS).logits, logits["deploy"]) < 1e-12
    assert worst < 2e-5, worst  # merged weights are rounded to fp32 on the way
    return f"2 bases x 3 views and mixed rows: within {worst:.1e}"


@gate.invariant("two blocks count as one change where their vectors are equal in a shared basis, and nowhere else")
def _():
    found = {}
    for basis in BASES:
        _, adapter = adapted(kind="delta_s", basis=basis)
        for equal in (False, True):
            with torch.no_grad():
                for module in adapter.modules:
                    assert isinstance(module, DeltaSLinear)
                    module.delta_q.copy_(module.delta_d if equal else module.delta_d + 1)
            found[basis, equal] = {module.blocks_equal for module in adapter.modules}
    _, other = adapted()
    assert found == {("shared", True): {True}} | {k: {False} for k in found if k != ("shared", True)}, found
    assert not any(module.blocks_equal for module in other.modules)
    return f"{len(found)} cases on delta_s, and lora2r"


@gate.invariant(
    "the step's gradient equals one rollout at a time, for every intervention without features and both bases"
)
def _():
    step = step_of([[3.0, 0.5, 2.0, 3.0], [3.0, 0.5, 0.0, 0.5]])
    config = GrpoConfig(
        prompts_per_step=2, group_size=4, beta=0.01, advantage_baseline="group", checkpoint_activations=False
    )
    worst = 0.0
    for basis in BASES:
        model, adapter = adapted(kind="delta_s", basis=basis)
        rows = [alone(model, adapter, r, 0.8) for r in step.rollouts]
        for name in ("none", "none_full", "absorb", "label_route"):
            cls = INTERVENTIONS[name]
            seen = step.seen if cls.oracle else dataclasses.replace(step.seen, labels=None)
            intervention = cls(cls.Settings(), adapter, 0)
            policy = policy_of(model, adapter)
            update(policy, step.groups, seen, step.rewards, step.keep, intervention, config, max_new=12, step=0)
            got = block_grads(adapter)
            wanted = {key: torch.zeros_like(g) for key, g in got.items()}
            for i, (r, row) in enumerate(zip(step.rollouts, rows, strict=True)):
                A = float((step.rewards - step.rewards.mean(1, keepdim=True)).flatten()[i])
                hack = name == "label_route" and float(step.rewards.flatten()[i]) == 3.0
                learn = {"quarantine"} if hack else {"deployed"}
                learn |= {"deployed", "quarantine"} if name in ("none_full", "absorb") else set()
                learn -= {"quarantine"} if r.view == "deploy" else set()
                for key in wanted:
                    if key[0] in learn:
                        wanted[key] += (config.beta * row.d_kl[key] - A * row.d_logp[key]) / (2 * 4 * 12)
            scale = max(float(g.abs().max()) for g in wanted.values())
            worst = max(worst, max(largest(got[k], wanted[k]) for k in wanted) / scale)
            if name == "none":
                assert not any(g.any() for (block, _), g in got.items() if block == "quarantine")
    assert worst < 1e-6, worst
    return f"8 cases within {worst:.1e} (relative)"


if __name__ == "__main__":
    gate.main()
