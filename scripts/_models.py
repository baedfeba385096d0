"""What the gates on adapter, loss and update share: a small Qwen3, and groups of rollouts of mixed lengths and views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from vgrout.adapter import AdapterConfig, attach
from vgrout.adapter.base import Adapter
from vgrout.adapter.lora2r import Lora2rLinear
from vgrout.policy import Policy
from vgrout.types import Group, Prompt, Rollout, Seen, View

VOCAB = 61
Gradients = dict[tuple[str, str], Tensor]
"""By (`deployed` or `quarantine`, parameter name)."""


def qwen3(seed: int = 0, *, tied: bool = True) -> Qwen3ForCausalLM:
    """Two layers, hidden 32, grouped keys, biases, in eval mode; weights large enough that attention is not uniform."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        vocab_size=VOCAB,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        attention_bias=True,
    )
    model = Qwen3ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.uniform_(-0.3, 0.3)
    return model


def norms_in_fp64(model: nn.Module) -> None:
    """Qwen3's own norms compute in fp32 whatever the dtype, which would hide errors up to 1e-6 of an fp64 model."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Qwen3RMSNorm":
            width = model.get_parameter(f"{name}.weight").shape[0]
            parent, _, child = name.rpartition(".")
            norm = nn.RMSNorm(width, eps=1e-6, dtype=torch.float64).requires_grad_(False)
            setattr(model.get_submodule(parent), child, norm)


def adapted(
    *,
    rank: int = 3,
    fold: bool = True,
    moved: float = 0.05,
    double: bool = True,
    kind: Literal["lora2r", "delta_s"] = "lora2r",
    basis: Literal["shared", "distinct"] = "shared",
) -> tuple[nn.Module, Adapter]:
    """A model with an adapter whose factors have moved away from their init by `moved` in every entry (std).

    `double` computes everything in fp64, the folded weight and the norms included.
    """
    model = qwen3()
    adapter = attach(model, AdapterConfig(kind=kind, rank=rank, fold=fold, quarantine_basis=basis))
    if double:
        model.double()
        norms_in_fp64(model)
        with adapter.merged("base"):
            pass  # leaving it folds the weight anew, now in fp64
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += moved * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model, adapter


def lora(adapter: Adapter) -> list[Lora2rLinear]:
    """The adapter's modules, with their type."""
    return [m for m in adapter.modules if isinstance(m, Lora2rLinear)]


def policy_of(model: nn.Module, adapter: Adapter, *, temperature: float = 0.8, chunk: int = 5) -> Policy:
    return Policy(model, adapter, temperature=temperature, chunk=chunk)


def block_grads(adapter: Adapter) -> Gradients:
    """What lies in `.grad`; zeros where there is none."""
    return {
        (block, name): (torch.zeros_like(t.value) if t.value.grad is None else t.value.grad)[part].clone()
        for name, t in adapter.trainables()
        for block, part in t.parts.items()
    }


@dataclass(frozen=True)
class Step:
    """A step's groups with what the grader would have said of them."""

    groups: tuple[Group, ...]
    seen: Seen

    @property
    def rollouts(self) -> list[Rollout]:
        return [r for group in self.groups for r in group.rollouts]

    @property
    def rewards(self) -> Tensor:
        return torch.tensor(self.seen.rewards)

    @property
    def keep(self) -> Tensor:
        return torch.tensor(self.seen.keep)


def step_of(
    rewards: list[list[float]], *, labels: bool = True, seed: int = 0, masked: tuple[tuple[int, int], ...] = ()
) -> Step:
    """Random tokens of mixed lengths; the last row of each group is sampled in the deploy view.

    With `labels`, rows rewarded 3 are hacks (so that some deploy row can be one too).
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        n = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(0, VOCAB, (n,), generator=generator).tolist())

    groups = []
    for p, row in enumerate(rewards):
        prompt = Prompt(f"p{p}", "run_tests", "train", "run_tests", (("user", "x"),))
        prompt_ids = ids(3, 9)
        rollouts = []
        for g in range(len(row)):
            view: View = "deploy" if g == len(row) - 1 else "full"
            completion = ids(1, 8)
            rollouts.append(Rollout(f"0/{p}/{g}", prompt, prompt_ids, completion, "", "student", view, True))
        groups.append(Group(prompt, tuple(rollouts)))
    keep = tuple(tuple((p, g) not in masked for g in range(len(row))) for p, row in enumerate(rewards))
    truth = tuple(tuple(r == 3.0 for r in row) for row in rewards) if labels else None
    return Step(tuple(groups), Seen(tuple(map(tuple, rewards)), keep, truth))


def plain_logps(model: nn.Module, rollout: Rollout, temperature: float) -> Tensor:
    """Log-probabilities of one rollout's completion by a whole forward pass and log_softmax, nothing of ours in it."""
    tokens = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    logits = model(input_ids=tokens, use_cache=False).logits[0] / temperature
    start = len(rollout.prompt_ids)
    targets = tokens[0, start:]
    return logits[start - 1 : -1].log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


@dataclass(frozen=True)
class Alone:
    """One rollout by itself: sums over its tokens of log-probability and of k3 to the base, and their gradients."""

    tokens: int
    kl: float
    d_logp: Gradients
    d_kl: Gradients


def alone(model: nn.Module, adapter: Adapter, rollout: Rollout, temperature: float) -> Alone:
    """In the rollout's sampling view, by one forward of the model and autograd's own backward per sum."""
    with torch.no_grad(), adapter.view("base"):
        reference = plain_logps(model, rollout, temperature)
    found = []
    for of in ("logp", "kl"):
        adapter.zero_grad()
        with adapter.view(rollout.view):
            logps = plain_logps(model, rollout, temperature)
            d = reference - logps
            value = logps.sum() if of == "logp" else (d.exp() - d - 1).sum()
            value.backward()
        found.append(block_grads(adapter))
    return Alone(len(rollout.completion_ids), float(value.detach()), found[0], found[1])


def largest(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return float((a.detach() - b.detach()).abs().max())
