"""The trained model as the update sees it: rollouts in, log-probabilities of their completion tokens out."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vgrout.adapter.base import Adapter
from vgrout.adapter.tokens import TokenIndex
from vgrout.grpo import token_logps
from vgrout.types import Rollout, View


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of prompt + completion, all sampled in one view.

    Under causal attention no real token sees the padding behind it, so no attention mask is needed, any token will do as
    padding, and padding carries no gradient.
    """

    rows: tuple[int, ...]
    """Position of each row's rollout in the step."""
    view: View
    tokens: Int[Tensor, "R L"]
    predict_at: Int[Tensor, " n"]
    """Flat position in `tokens` whose hidden state predicts each completion token."""
    targets: Int[Tensor, " n"]
    owner: Int[Tensor, " n"]
    """Row of each completion token."""
    lengths: Int[Tensor, " R"]
    """Completion tokens of each row."""
    index: TokenIndex


def make_batch(rollouts: Sequence[Rollout], rows: Sequence[int], *, device: torch.device) -> Batch:
    """One batch of the step's rollouts `rows`; they must share their sampling view."""
    chosen = [rollouts[i] for i in rows]
    (view,) = {r.view for r in chosen}
    width = max(len(r.prompt_ids) + len(r.completion_ids) for r in chosen)
    tokens = torch.zeros((len(chosen), width), dtype=torch.long)
    rollout_of = torch.full((len(chosen), width), -1)
    at, owner = [], []
    for j, r in enumerate(chosen):
        start, end = len(r.prompt_ids), len(r.prompt_ids) + len(r.completion_ids)
        tokens[j, :end] = torch.tensor(r.prompt_ids + r.completion_ids)
        rollout_of[j, :end] = j
        at.append(torch.arange(start - 1, end - 1) + j * width)
        owner.append(torch.full((end - start,), j))
    predict_at = torch.cat(at)
    return Batch(
        rows=tuple(rows),
        view=view,
        tokens=tokens.to(device),
        predict_at=predict_at.to(device),
        targets=tokens.flatten()[predict_at + 1].to(device),
        owner=torch.cat(owner).to(device),
        lengths=torch.tensor([len(r.completion_ids) for r in chosen], device=device),
        index=TokenIndex(rollout_of.to(device), len(chosen)),
    )


def micro_batches(
    rollouts: Sequence[Rollout], rows: Sequence[int], *, token_budget: int, device: torch.device
) -> list[Batch]:
    """Splits the rows of a step into batches of one view and at most `token_budget` tokens, padding included.

    Rows are sorted by length within a view, so padding stays small; a single longer row is a batch of its own.
    """
    batches: list[list[int]] = []
    size = {i: len(rollouts[i].prompt_ids) + len(rollouts[i].completion_ids) for i in rows}
    for view in sorted({rollouts[i].view for i in rows}):
        current: list[int] = []
        for i in sorted((i for i in rows if rollouts[i].view == view), key=lambda i: (-size[i], i)):
            if current and size[current[0]] * (len(current) + 1) > token_budget:
                batches.append(current)
                current = []
            current.append(i)
        batches.append(current)
    return [make_batch(rollouts, b, device=device) for b in batches]


class Policy:
    """Model and adapter, in eval mode (no dropout), with the base frozen."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        *,
        temperature: float,
        chunk: int,
        checkpoint_activations: bool = False,
    ):
        self.model, self.adapter = model, adapter
        self.temperature, self.chunk = temperature, chunk
        head = model.get_output_embeddings()  # ty: ignore[not-callable]
        if getattr(head, "bias", None) is not None:
            raise ValueError("the model's output head has a bias, which the chunked log-probabilities do not add")
        self.head: Tensor = head.weight
        self.backbone: nn.Module = model.get_decoder()  # ty: ignore[not-callable]
        self.checkpointed: list[GradientCheckpointingLayer] = []
        if checkpoint_activations:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # ty: ignore[not-callable]
            self.checkpointed = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]

    @property
    def device(self) -> torch.device:
        return self.head.device

    @contextmanager
    def _checkpointing(self) -> Generator[None]:
        """transformers checkpoints only layers whose own `training` flag is set, and drops the cache of such layers: the
        flag is set for this forward alone, so that sampling keeps its cache and dropout stays off."""
        for layer in self.checkpointed:
            layer.training = torch.is_grad_enabled()
        try:
            yield
        finally:
            for layer in self.checkpointed:
                layer.training = False

    def logps(self, batch: Batch) -> Float[Tensor, " n"]:
        """Log-probabilities of the completion tokens under the adapter's current view or route, at the sampling temperature.

        With activation checkpointing the backward must run inside the same view or route: it repeats the forward.
        """
        with self._checkpointing():
            hidden = self.backbone(input_ids=batch.tokens, use_cache=False).last_hidden_state
        flat = hidden.flatten(0, 1)[batch.predict_at]
        return token_logps(flat, self.head, batch.targets, temperature=self.temperature, chunk=self.chunk)
