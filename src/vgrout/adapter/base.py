"""What every adapter shares: one real module per target linear, and one state object that they all read.

Blocks are declared data (`Trainable.parts`), so decay toward init, norms, gradients, saving and controls are written
once, here, for every adapter. Views, routes, merging and recording are context managers: they restore on any exit and
nest. A view and a route each say what the whole forward is, so the inner one acts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vgrout.adapter.basis import fingerprint
from vgrout.adapter.linear import ACTS, REMOVED, AdaptedLinear, AdapterState, Observer, Recorder, Trainable
from vgrout.adapter.route import BLOCKS, Route
from vgrout.adapter.tokens import TokenIndex
from vgrout.types import UserError, View

TARGETS = frozenset(
    [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "in_proj_qkv",
        "in_proj_z",
        "in_proj_a",
        "in_proj_b",
        "in_proj_qkvz",
        "in_proj_ba",
        "out_proj",
    ]
)
"""Last name components of the linears that are wrapped (spec 3). Embeddings and lm_head never are."""
_SEED_STRIDE = 100_003


def target_linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linears to wrap, in module order. No match is a `UserError` that lists the model's linears."""
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = [(name, m) for name, m in linears if name.rsplit(".", 1)[-1] in TARGETS]
    if not found:
        have = sorted({name.rsplit(".", 1)[-1] for name, _ in linears}) or ["no nn.Linear at all"]
        raise UserError(
            f"model {type(model).__name__} has no target linear: expected names ending in {', '.join(sorted(TARGETS))}; "
            f"its linears are {', '.join(have)}; use a model with such projections or extend vgrout.adapter.base.TARGETS"
        )
    return found


def replace_targets(
    model: nn.Module, make: Callable[[nn.Linear, str, AdapterState, int], AdaptedLinear], init_seed: int
) -> tuple[list[AdaptedLinear], AdapterState]:
    """Replaces every target linear in place by what `make(linear, name, state, seed)` returns; freezes everything else.

    Seeds are `init_seed * stride + module index`, so that neighbouring init seeds share no module's.
    """
    model.requires_grad_(False)
    state = AdapterState()
    modules: list[AdaptedLinear] = []
    for index, (name, linear) in enumerate(target_linears(model)):
        module = make(linear, name, state, init_seed * _SEED_STRIDE + index)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
        modules.append(module)
    return modules, state


class Adapter:
    """The adapted linears of one model and their shared state."""

    def __init__(
        self, modules: list[AdaptedLinear], state: AdapterState, *, kind: str, settings: Mapping[str, int | str]
    ):
        self.modules, self.state = modules, state
        self.kind, self.settings = kind, dict(settings)
        """Name of the adapter, and what was asked of it that decides what its tensors mean."""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every module's name and frozen basis: tensors of equal shape in another basis mean something else."""
        digest = hashlib.sha256()
        for module in self.modules:
            digest.update(f"{module.name} {fingerprint(*module.basis)}\n".encode())
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """What checkpoints and directions must share with the adapter that they are loaded for."""
        ranks = {module.name: module.rank for module in self.modules}
        return {"adapter": self.kind, **self.settings, "module_ranks": ranks, "basis": self.fingerprint}

    @contextmanager
    def view(self, view: View) -> Generator[None]:
        """The training forward of this view. Raises ValueError for `random_removal`, which has none, and while another
        view is merged, which it cannot undo."""
        if view not in ACTS:
            raise ValueError(
                f"adapter: view {view!r} is a control of evaluations and has no training forward; merge it instead"
            )
        if self.state.merged not in (None, view) or self.state.shares:
            raise ValueError(f"adapter: view {view!r} asked for while {self.state.merged!r} is merged into the weights")
        with self._holding(view=view, masks=None):
            yield

    @contextmanager
    def routed(self, route: Route, index: TokenIndex) -> Generator[None]:
        """The training forward under this route: one row per rollout of the batch that `index` describes, resolved.

        Value and activation masks act in here; a parameter mask is a `recording` with `Route.block_weights` beside it.
        Raises ValueError while a view is merged, and for a route of another number of rollouts.
        """
        if self.state.merged is not None:
            raise ValueError(f"adapter: a route was asked for while {self.state.merged!r} is merged into the weights")
        if len(route.d_grad) != index.n:
            raise ValueError(f"adapter: a route of {len(route.d_grad)} rollouts for a batch of {index.n}")
        with self._holding(view="full", masks=route.spread(index)):
            yield

    @contextmanager
    def recording(self, recorder: Recorder) -> Generator[None]:
        """Parameter gradients go to `recorder` instead of autograd's `.grad`; gradients of activations are unchanged."""
        with self._holding(recorder=recorder):
            yield

    @contextmanager
    def observed(self, observer: Observer) -> Generator[None]:
        """Every forward in here shows the inputs of the adapted linears to `observer`."""
        with self._holding(observer=observer):
            yield

    @contextmanager
    def merged(self, view: View) -> Generator[None]:
        """The model is a plain one with this view's weights: for sampling, where the adapter should cost nothing.

        Raises ValueError under a route, which has no weights that could be merged.
        """
        if self.state.masks is not None:
            raise ValueError(f"adapter: cannot merge {view!r} under a route, which has no weights of its own")
        if self.modules[0].differences:
            raise ValueError(f"adapter: cannot merge {view!r} for all rows while they are merged row by row")
        before = self.state.merged
        try:
            self._load(view)
            yield
        finally:
            self._load(before)

    @contextmanager
    def merged_rows(self, views: Sequence[View]) -> Generator[Callable[[Sequence[View]], None]]:
        """Like `merged`, for batches whose rows are in different views; `views` are those that occur, the first is merged.

        Yields `select`, which says which view each row of the following batches is in. A row of another view than the
        merged one pays two thin products; a second pass over the batch would cost far more.
        """
        first, *others = dict.fromkeys(views)

        def select(rows: Sequence[View]) -> None:
            if unknown := set(rows) - {first, *others}:
                raise ValueError(f"adapter: rows in view {', '.join(sorted(unknown))}, merged for {first}, {others}")
            of = self.modules[0].weight
            self.state.shares = tuple(
                torch.tensor([float(row == view) for row in rows], dtype=of.dtype, device=of.device)[:, None, None]
                for view in others
            )

        with self.merged(first), self._holding(shares=()):
            try:
                for module in self.modules:
                    module.differences = tuple(module.difference(view, first) for view in others)
                yield select
            finally:
                for module in self.modules:
                    module.differences = ()

    @contextmanager
    def removing(self, seed: int) -> Generator[None]:
        """The seed of the random removal that is merged in here. Raises ValueError while one is merged already."""
        if self.state.merged == REMOVED:
            raise ValueError("adapter: another seed of the random removal was named while one is merged")
        with self._holding(removal_seed=seed):
            yield

    @contextmanager
    def _holding(self, **values: Any) -> Generator[None]:
        """These fields of the state, put back on any exit."""
        before = {name: getattr(self.state, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self.state, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self.state, name, value)

    def _load(self, view: View | None) -> None:
        for module in self.modules:
            module.load_weight(view)
        self.state.merged = view

    def trainables(self) -> Iterator[tuple[str, Trainable]]:
        """(`module name.key`, trainable) in a fixed order."""
        for module in self.modules:
            for t in module.trainables():
                yield f"{module.name}.{t.key}", t

    def parameters(self) -> list[nn.Parameter]:
        return [t.value for _, t in self.trainables()]

    def gradients(self) -> list[Tensor]:
        """`.grad` of every trainable; zeros where there is none."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters()]

    def deployed(self, tensors: Sequence[Tensor]) -> dict[str, Float[Tensor, " d"]]:
        """Of tensors like the trainables, one for each: each module's part of the deployed block as one vector.

        These are the coordinates in which a gradient or an update is erased.
        """
        return {
            module.name: torch.cat([tensor[part].reshape(-1) for tensor, part in parts])
            for module, parts in self._deployed_parts(tensors)
        }

    def deployed_sizes(self) -> dict[str, int]:
        """Length of each module's vector in `deployed`."""
        own = self._deployed_parts([t.value for _, t in self.trainables()])
        return {module.name: sum(t[part].numel() for t, part in parts) for module, parts in own}

    def set_deployed(self, tensors: Sequence[Tensor], vectors: Mapping[str, Float[Tensor, " d"]]) -> None:
        """Writes vectors as `deployed` gives them back into the tensors, for the modules that are named."""
        for module, parts in self._deployed_parts(tensors):
            if module.name in vectors:
                pieces = vectors[module.name].split([tensor[part].numel() for tensor, part in parts])
                for (tensor, part), piece in zip(parts, pieces, strict=True):
                    tensor[part] = piece.view(tensor[part].shape).to(tensor.dtype)

    def _deployed_parts(
        self, tensors: Sequence[Tensor]
    ) -> Iterator[tuple[AdaptedLinear, list[tuple[Tensor, tuple[slice, ...]]]]]:
        """Each module with the tensors that belong to its trainables, and the deployed block's part of each."""
        rest = iter(tensors)
        for module in self.modules:
            own = [(t, next(rest)) for t in module.trainables()]
            yield module, [(tensor, t.parts["deployed"]) for t, tensor in own if "deployed" in t.parts]

    def zero_grad(self) -> None:
        """Every gradient becomes a zero tensor, so that a block that received nothing is 0 and not absent."""
        for p in self.parameters():
            p.grad = torch.zeros_like(p)

    @torch.no_grad()
    def apply(self, updates: list[Tensor], *, decay: float) -> None:
        """`p <- p + update - decay (p - init)`. Decay is decoupled and toward the init copies: AdamW's own would drive
        the net delta to -B0 A0 instead of 0 (spec 3.1). `decay` is learning rate times coefficient."""
        for (_, t), update in zip(self.trainables(), updates, strict=True):
            t.value.sub_(t.value - t.init, alpha=decay).add_(update)

    @torch.no_grad()
    def block_norm(self, block: str, of: str) -> float:
        """Euclidean norm over all modules of one block's `grad`, or of its distance from init (`moved`)."""
        if of not in ("grad", "moved"):
            raise ValueError(f"block_norm({block!r}, {of!r}): expected 'grad' or 'moved'")
        return self.norm_of(block, [t.value.grad if of == "grad" else t.value - t.init for _, t in self.trainables()])

    @torch.no_grad()
    def norm_of(self, block: str, tensors: Sequence[Tensor | None]) -> float:
        """Euclidean norm of one block's part of tensors like the trainables; None counts as 0."""
        if block not in BLOCKS:
            raise ValueError(f"norm of block {block!r}: expected one of {BLOCKS}")
        total = 0.0
        for (_, t), value in zip(self.trainables(), tensors, strict=True):
            if block in t.parts and value is not None:
                total += float(value[t.parts[block]].double().square().sum())
        return total**0.5
