"""delta_s: the singular values of each target weight move, the singular bases stay (spec 3.2).

    W = U diag(S) Vh,     y = W x + bias + U diag(delta) Vh x + U Q^T diag(delta_q) Q Vh x,     delta = delta_q = 0 at init

`delta` is the deployed block and `delta_q` the quarantine; deploy is delta_q = 0. With `quarantine_basis = shared` Q is
the identity, so that the forward reads the sum delta + delta_q and routing only splits magnitudes; `distinct` gives the
quarantine a seeded orthogonal Q of its own (vgrout.adapter.rotation), of the same size and scale.

With h = Vh x and g = U^T dL/dy per token, the gradients are sums over tokens of h * g (delta) and Qh * Qg (delta_q): all
that a backward must keep are the two vectors. U and Vh are in the weight's dtype, the trained vectors in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vgrout.adapter.base import Adapter, replace_targets
from vgrout.adapter.basis import cache_folder, cached
from vgrout.adapter.linear import ACTS, AdaptedLinear, AdapterState, Factors, Trainable
from vgrout.adapter.rotation import Rotation
from vgrout.adapter.tokens import TokenIndex
from vgrout.types import View

QuarantineBasis = Literal["shared", "distinct"]
Rotate = Callable[[Tensor], Tensor]


class _Diagonal(torch.autograd.Function):
    """v_d delta * h + v_q Q^T (delta_q * Q h), whose backward has factors f in the place of v.

    v and f are per token, their last axis the blocks; None stands for the factor 1 of blocks that act. Without a
    recorder (`collect` None) the gradients of delta and delta_q go the usual way. That of v is the one of the forward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        delta: Tensor,
        delta_q: Tensor,
        v: Tensor | None,
        f: Tensor | None,
        module: DeltaSLinear,
        quarantined: bool,
        collect: Callable[..., None] | None,
    ) -> Tensor:
        ctx.save_for_backward(h, delta, delta_q, v, f)
        ctx.module, ctx.quarantined, ctx.collect = module, quarantined, collect
        z = h * delta if v is None else h * delta * v[..., :1]
        if quarantined:
            z_q = module.rotate_back(module.rotate(h) * delta_q)
            z = z + (z_q if v is None else z_q * v[..., 1:])
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (g,) = grads
        h, delta, delta_q, v, f = ctx.saved_tensors
        module = ctx.module
        flow_d, flow_q = (1.0, 1.0) if f is None else (f[..., :1], f[..., 1:])
        grad_h = g * flow_d * delta
        if ctx.quarantined:
            grad_h = grad_h + module.rotate_back(module.rotate(g * flow_q) * delta_q)
        grad_v = None
        if v is not None and ctx.needs_input_grad[3]:
            z_q = module.rotate_back(module.rotate(h) * delta_q)
            grad_v = torch.stack([(g * h * delta).sum(-1), (g * z_q).sum(-1)], dim=-1)
        of_delta = of_delta_q = None
        factors = (h, g) if f is None else (h, g, f)
        if ctx.collect is not None:
            ctx.collect(factors)
        else:
            of_delta = module.block_gradients(factors, "deployed", None)["delta"]
            if ctx.quarantined:
                of_delta_q = module.block_gradients(factors, "quarantine", None)["delta_q"]
        return grad_h, of_delta, of_delta_q, grad_v, None, None, None, None


class DeltaSLinear(AdaptedLinear):
    """One target linear. U and Vh are in the weight's dtype, `delta` and `delta_q` fp32 of length m = min(d_in, d_out)."""

    def __init__(
        self, linear: nn.Linear, name: str, state: AdapterState, *, seed: int, quarantine_basis: QuarantineBasis
    ):
        super().__init__(linear, name, state)
        basis = cached(linear.weight, cache_folder())
        self.register_buffer("U", basis.U, persistent=False)
        self.register_buffer("S", basis.S, persistent=False)
        self.register_buffer("Vh", basis.Vh, persistent=False)
        self.U: Tensor
        self.S: Tensor
        self.Vh: Tensor
        self.rank = len(basis.S)
        self.rotation = Rotation(self.rank, seed=seed, like=basis.U) if quarantine_basis == "distinct" else None
        zero = torch.zeros(self.rank, device=linear.weight.device)
        self.register_buffer("zero", zero, persistent=False)
        self.zero: Tensor
        self.delta_d, self.delta_q = nn.Parameter(zero.clone()), nn.Parameter(zero.clone())

    def rotate(self, h: Float[Tensor, "*R m"]) -> Float[Tensor, "*R m"]:
        """Q h."""
        return h if self.rotation is None else self.rotation(h)

    def rotate_back(self, h: Float[Tensor, "*R m"]) -> Float[Tensor, "*R m"]:
        """Q^T h."""
        return h if self.rotation is None else self.rotation.inverse(h)

    def trainables(self) -> list[Trainable]:
        whole = (slice(None),)
        return [
            Trainable("delta", self.delta_d, self.zero, {"deployed": whole}),
            Trainable("delta_q", self.delta_q, self.zero, {"quarantine": whole}),
        ]

    def block_gradients(self, factors: Factors, block: str, share: Float[Tensor, "R L 1"] | None) -> dict[str, Tensor]:
        """sum_t share_t (h_t * g_t), for the quarantine in its own basis."""
        h, g = _flowing(factors, block)
        if share is not None:
            g = g * share
        if block == "deployed":
            return {"delta": (h * g).flatten(0, -2).sum(0)}
        return {"delta_q": (self.rotate(h) * self.rotate(g)).flatten(0, -2).sum(0)}

    def rollout_gradients(self, factors: Factors, index: TokenIndex) -> dict[str, Float[Tensor, "n ..."]]:
        own = {}
        for key, block in (("delta", "deployed"), ("delta_q", "quarantine")):
            h, g = _flowing(factors, block)
            product = h * g if block == "deployed" else self.rotate(h) * self.rotate(g)
            own[key] = index.segment_sum(product)
        return own

    def probe(self, gradients: dict[str, Float[Tensor, "n ..."]], view: View) -> Float[Tensor, "n k"]:
        """The adapter's own coordinates: the gradient of `delta`."""
        return gradients["delta"]

    def token_probe(self, factors: Factors) -> Float[Tensor, "R L k"]:
        """h_t * g_t, the gradient of `delta`."""
        h, g = _flowing(factors, "deployed")
        return h * g

    @property
    def probe_size(self) -> int:
        return self.rank

    def bottleneck(self, x: Float[Tensor, "*R i"]) -> Float[Tensor, "*R k"]:
        return F.linear(x, self.Vh)

    @property
    def basis(self) -> tuple[Tensor, ...]:
        return self.U, self.Vh

    @property
    def blocks_equal(self) -> bool:
        return self.rotation is None and torch.equal(self.delta_d, self.delta_q)

    @torch.no_grad()
    def quarantine_singular_values(self) -> Float[Tensor, " m"]:
        """|delta_q|: U, Vh and the rotation are orthonormal, to the precision of the weight's dtype."""
        return self.delta_q.abs()

    def block_delta(self, view: View) -> Float[Tensor, "o i"]:
        return self._change(float("deployed" in ACTS[view]), float("quarantine" in ACTS[view]))

    def _change(self, of_delta: float, of_delta_q: float) -> Float[Tensor, "o i"]:
        """U [c_d diag(delta) + c_q Q^T diag(delta_q) Q] Vh."""
        U, Vh = (t.to(self.delta_d.dtype) for t in (self.U, self.Vh))
        if not of_delta and not of_delta_q:
            return torch.zeros(self.weight.shape, dtype=self.delta_d.dtype, device=self.weight.device)
        return U @ self._inner(Vh, of_delta, of_delta_q)

    def _inner(self, Vh: Float[Tensor, "m i"], of_delta: float, of_delta_q: float) -> Float[Tensor, "m i"]:
        z = of_delta * self.delta_d[:, None] * Vh
        if self.rotation is None:
            return z + of_delta_q * self.delta_q[:, None] * Vh
        rows = self.rotate(Vh.T.to(self.U.dtype)).to(Vh.dtype) * self.delta_q  # [i, m]
        return z + of_delta_q * self.rotate_back(rows.to(self.U.dtype)).T.to(Vh.dtype)

    def block_difference(self, view: View, merged: View) -> tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]:
        sign = {block: float((block in ACTS[view]) - (block in ACTS[merged])) for block in ("deployed", "quarantine")}
        A = self._inner(self.Vh.to(self.delta_d.dtype), sign["deployed"], sign["quarantine"])
        return A.to(self.weight.dtype), self.U

    def training_weight(self, pristine: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
        return pristine

    def branch(self, x: Float[Tensor, "*R i"]) -> Float[Tensor, "*R o"] | None:
        masks, view = self.state.masks, self.state.view
        if masks is None and view == "base":
            return None
        v, f = (None, None) if masks is None else (masks.value.to(x.dtype), masks.flow.to(x.dtype))
        recorder = self.state.recorder
        collect = None if recorder is None or not torch.is_grad_enabled() else partial(recorder.collect, self)
        quarantined = masks is not None or "quarantine" in ACTS[view]
        deployed = self.delta_d if masks is not None or "deployed" in ACTS[view] else self.zero
        delta, delta_q = deployed.to(x.dtype), self.delta_q.to(x.dtype)
        h = F.linear(x, self.Vh)
        return F.linear(_Diagonal.apply(h, delta, delta_q, v, f, self, quarantined, collect), self.U)


def _flowing(factors: Factors, block: str) -> tuple[Tensor, Tensor]:
    """(h, g) with the block's factor of the backward on g."""
    h, g, *flow = factors
    # At least fp32: the parts of a split must add up to the whole, and bf16 products miss it by a quarter of a percent.
    wide = torch.promote_types(g.dtype, torch.float32)
    h, g = h.to(wide), g.to(wide)
    if not flow:
        return h, g
    return h, g * (flow[0][..., :1] if block == "deployed" else flow[0][..., 1:])


def attach_delta_s(model: nn.Module, *, init_seed: int, quarantine_basis: QuarantineBasis = "shared") -> Adapter:
    """Replaces every target linear of `model` in place by a `DeltaSLinear` and freezes everything else.

    Decompositions are read from the cache or computed and kept there. Raises `UserError` for a model without target
    linears and for a cache that cannot be read or written.
    """

    def make(linear: nn.Linear, name: str, state: AdapterState, seed: int) -> AdaptedLinear:
        return DeltaSLinear(linear, name, state, seed=seed, quarantine_basis=quarantine_basis)

    modules, state = replace_targets(model, make, init_seed)
    return Adapter(
        modules, state, kind="delta_s", settings={"init_seed": init_seed, "quarantine_basis": quarantine_basis}
    )
