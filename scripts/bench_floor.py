"""The floor of bench_step.py: one GRPO step in plain torch and transformers that uses nothing of the package.

It is what a good engineer writes without routing in mind: one batch of all P x G rows, a LoRA of total rank k in its
folded form as a small module, weights merged for sampling, a decode loop over transformers' own cache, log-probabilities
in chunks, the k3 KL to the initial policy, clipping, AdamW, decay toward init. `shared_prefix=True` is the same loop
with every prompt computed once per group: prefilled once, and packed with its G completions into one training row.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

Init = tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]
"""A0 and B0 of one linear."""


@dataclass(frozen=True)
class Settings:
    """The work of one step, the same for every system."""

    group_size: int = 8
    max_new: int = 96
    lr: float = 7e-5
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.1
    grad_clip: float = 1.0
    clip: float = 0.2
    beta: float = 1e-3
    chunk: int = 1024


class FoldedLora(nn.Module):
    """y = W'x + bias + B(Ax) with W' = W - B0 A0 computed once; `mode` chooses trained, initial or merged factors."""

    def __init__(self, linear: nn.Linear, init: Init):
        super().__init__()
        self.A0, self.B0 = (f.clone() for f in init)
        self.A, self.B = nn.Parameter(self.A0.clone()), nn.Parameter(self.B0.clone())
        self.weight = (linear.weight.detach().float() - self.B0 @ self.A0).to(linear.weight.dtype)
        self.bias = linear.bias
        self.mode = "train"
        self.merged: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.merged is not None:
            return F.linear(x, self.merged, self.bias)
        A, B = (self.A, self.B) if self.mode == "train" else (self.A0, self.B0)
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))

    @torch.no_grad()
    def merge(self) -> None:
        self.merged = torch.addmm(self.weight.float(), self.B, self.A).to(self.weight.dtype)


class Floor:
    """The three phases of a step: `generate`, `update` (reference, forward, backward), `optimize`."""

    def __init__(self, model: PreTrainedModel, inits: Sequence[Init], settings: Settings, *, shared_prefix: bool):
        """Wraps the projections of `model` in place; `inits` are A0, B0 in the order of `model.named_modules()`."""
        self.model, self.settings, self.shared_prefix = model.requires_grad_(False).eval(), settings, shared_prefix
        self.loras: list[FoldedLora] = []
        targets = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith("_proj")]
        for name, init in zip(targets, inits, strict=True):
            parent, _, child = name.rpartition(".")
            owner = model.get_submodule(parent)
            self.loras.append(FoldedLora(getattr(owner, child), init))
            setattr(owner, child, self.loras[-1])
        self.backbone: nn.Module = model.get_decoder()
        self.head: Tensor = model.get_output_embeddings().weight
        self.parameters = [p for lora in self.loras for p in (lora.A, lora.B)]
        self.initial = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.lr, betas=settings.betas, weight_decay=0.0, foreach=True
        )

    @torch.inference_mode()
    def generate(self, prompts: Int[Tensor, "P L"], *, greedy: bool = False) -> Int[Tensor, "N T"]:
        """G completions of exactly `max_new` tokens for each prompt, at temperature 1."""
        G = self.settings.group_size
        with self._merged():
            rows = prompts if self.shared_prefix else prompts.repeat_interleave(G, 0)
            out = self.model(input_ids=rows, use_cache=True, logits_to_keep=1)
            cache, logits = out.past_key_values, out.logits[:, -1].float()
            if self.shared_prefix:
                cache.batch_repeat_interleave(G)
                logits = logits.repeat_interleave(G, 0)
            tokens = []
            while True:
                tokens.append(logits.argmax(-1) if greedy else torch.multinomial(logits.softmax(-1), 1)[:, 0])
                if len(tokens) == self.settings.max_new:
                    return torch.stack(tokens, dim=1)
                out = self.model(input_ids=tokens[-1][:, None], past_key_values=cache, use_cache=True)
                logits = out.logits[:, -1].float()

    def update(
        self, prompts: Int[Tensor, "P L"], completions: Int[Tensor, "N T"], rewards: Float[Tensor, "P G"]
    ) -> float:
        """Leaves the gradients of the step's loss in the LoRA's `.grad`; returns the loss."""
        advantages = (rewards - rewards.mean(1, keepdim=True)).flatten()
        rows = prompts if self.shared_prefix else prompts.repeat_interleave(self.settings.group_size, 0)
        self.optimizer.zero_grad(set_to_none=True)
        return self.backward(rows, completions, advantages, denominator=completions.numel())

    def backward(
        self,
        prompts: Int[Tensor, "M L"],
        completions: Int[Tensor, "N T"],
        advantages: Float[Tensor, " N"],
        *,
        denominator: int,
    ) -> float:
        """Returns `loss = sum(-min(rho A, clip(rho) A) + beta k3) / denominator`, on policy, so rho is 1 in value."""
        new = self.logps(prompts, completions)
        with torch.no_grad(), self._mode("initial"):
            reference = self.logps(prompts, completions)
        ratio, A, eps = (new - new.detach()).exp(), advantages[:, None], self.settings.clip
        policy = -torch.minimum(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A)
        d = reference - new
        loss = policy + self.settings.beta * (d.exp() - d - 1)
        total = loss.sum() / denominator
        total.backward()
        return float(total.detach())

    @torch.no_grad()
    def optimize(self) -> None:
        """Clip, AdamW, decoupled decay toward the initial factors."""
        s = self.settings
        nn.utils.clip_grad_norm_(self.parameters, s.grad_clip)
        for p, p0 in zip(self.parameters, self.initial, strict=True):
            p.sub_(p - p0, alpha=s.lr * s.decay)
        self.optimizer.step()

    def logps(self, prompts: Int[Tensor, "M L"], completions: Int[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """Log-probabilities of the completions; M is P (prompts shared) or N (one prompt per row)."""
        length, (rows, new) = prompts.shape[1], completions.shape
        if self.shared_prefix:
            packed, positions, mask = pack(prompts, completions)
            hidden = self.backbone(input_ids=packed, position_ids=positions, attention_mask=mask, use_cache=False)[0]
            first = hidden[:, length - 1].repeat_interleave(rows // len(prompts), 0)[:, None]
            hidden = torch.cat([first, hidden[:, length:].reshape(rows, new, -1)[:, :-1]], dim=1)
        else:
            packed = torch.cat([prompts, completions], dim=1)
            hidden = self.backbone(input_ids=packed, use_cache=False)[0][:, length - 1 : -1]
        pieces = zip(hidden.flatten(0, 1).split(self.settings.chunk), completions.flatten().split(self.settings.chunk))
        chunks = [checkpoint(self._chunk_logps, h, y, use_reentrant=False) for h, y in pieces]
        return torch.cat(chunks).view(rows, new)

    def _chunk_logps(self, hidden: Float[Tensor, "n H"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        logits = F.linear(hidden, self.head).float()
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)

    @contextmanager
    def _merged(self) -> Generator[None]:
        for lora in self.loras:
            lora.merge()
        try:
            yield
        finally:
            for lora in self.loras:
                lora.merged = None

    @contextmanager
    def _mode(self, mode: str) -> Generator[None]:
        for lora in self.loras:
            lora.mode = mode
        try:
            yield
        finally:
            for lora in self.loras:
                lora.mode = "train"


def pack(
    prompts: Int[Tensor, "P L"], completions: Int[Tensor, "N T"]
) -> tuple[Int[Tensor, "P W"], Int[Tensor, "P W"], Bool[Tensor, "P 1 W W"]]:
    """Rows of prompt + its G completions, their positions, and the mask that keeps completions from one another."""
    (P, L), T = prompts.shape, completions.shape[1]
    G, device = len(completions) // P, prompts.device
    tokens = torch.cat([prompts, completions.reshape(P, G * T)], dim=1)
    positions = torch.cat([torch.arange(L), (L + torch.arange(T)).repeat(G)]).to(device)
    branch = torch.cat([torch.full((L,), -1), torch.arange(G).repeat_interleave(T)]).to(device)
    order = torch.arange(L + G * T, device=device)
    seen = (order[:, None] >= order) & ((branch == -1) | (branch[:, None] == branch))
    return tokens, positions.expand(P, -1), seen.expand(P, 1, -1, -1)
