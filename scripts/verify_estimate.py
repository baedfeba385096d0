"""The memory that a dry run announces is the one that the code takes.

Invariants:
- the shapes that are written down have the parameters of the models that transformers builds of them;
- parts that can be counted are counted exactly: weights, adapter, optimizer, checkpoint, cache, kept gradients;
- the peak of an update and of decoding, measured by the allocator, is the estimated one within a stated factor;
- the figures of Qwen3-4B are those that were computed for it before, and those of docs/memory.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from _cli import FOLDER
from _gate import Gate
from _peak import peak
from vgrout.adapter import AdapterConfig, attach
from vgrout.adapter.base import target_linears
from vgrout.adapter.checkpoint import CheckpointInfo, save_checkpoint
from vgrout.adapter.gradients import BlockSums, PerRollout, PerToken
from vgrout.estimate import PUBLISHED, Backward, Keeps, Sampling, Shape, Work, checkpoint_bytes, estimate, total
from vgrout.estimate.phases import backward_terms, sampling_terms
from vgrout.estimate.sizes import adapter_bytes, cache_bytes, layer_saved, rollout_bytes, token_factor_bytes, trained
from vgrout.grpo import GrpoConfig
from vgrout.models.tiny import Size, random_qwen3, shipped_texts, train_tokenizer
from vgrout.optim import OptimConfig, Optimizer
from vgrout.policy import Policy
from vgrout.rollout.base import SamplingParams
from vgrout.rollout.cache import RowCache
from vgrout.rollout.decode import decode
from vgrout.types import Prompt, Rollout
from vgrout.update.loss import StepLoss
from vgrout.update.stats import empty

gate = Gate(__doc__)
PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
SIZE = Size(hidden=128, layers=4, heads=4, kv_heads=2, intermediate=512, vocab=1024, tie_embeddings=False)
DTYPES = {4: torch.float32, 2: torch.bfloat16}
IDLE = Sampling(1, 1, 8, 8, 1.0, 0)


def work(width: int = 4, kind: str = "lora2r", **changed: Any) -> Work:
    """The work of a small model."""
    shape = Shape(SIZE.hidden, SIZE.layers, SIZE.heads, SIZE.kv_heads, 32, SIZE.intermediate, SIZE.vocab, False)
    w = Work(
        *(
            shape,
            width,
            kind,
            8,
            False,
            False,
            IDLE,
            IDLE,
            Backward(8, 128, 2048),
            "nothing",
            False,
            None,
            12,
            5,
            16,
            True,
            False,
        )
    )
    return dataclasses.replace(w, **changed)


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(shipped_texts(), 1024)


def policy(w: Work) -> Policy:
    """The model that the work describes, with its adapter."""
    s = w.shape
    size = Size(s.hidden, s.layers, s.heads, s.kv_heads, s.intermediate, s.vocab, s.tied)
    model = random_qwen3(size, tokenizer(), 0)
    for p in model.parameters():
        p.data = p.data.to(DTYPES[w.width])
    model = model.eval().requires_grad_(False)
    adapter = attach(
        model,
        AdapterConfig(w.adapter, w.rank, quarantine_basis="distinct" if w.distinct else "shared"),  # ty: ignore[invalid-argument-type]
    )
    return Policy(model, adapter, temperature=1.0, chunk=w.chunk, checkpoint_activations=w.checkpointed)


def rollouts(n: int, prompt: int, new: int) -> list[Rollout]:
    draw = torch.Generator().manual_seed(0)
    ids = lambda k: tuple(torch.randint(3, 900, (k,), generator=draw).tolist())  # noqa: E731
    asked = Prompt("p", "sentinel", "train", "", (("user", "x"),))
    return [Rollout(str(i), asked, ids(prompt), ids(new), "", "student", "full", True) for i in range(n)]


def backward(w: Work, p: Policy) -> Any:
    """One micro-batch as the update runs it; returns what was kept."""
    b = w.update
    rows = rollouts(b.batch, b.length // 2, b.length - b.length // 2)
    config = GrpoConfig(beta=1e-3 if w.kl else 0.0, logp_chunk=w.chunk)
    loss = StepLoss(p, rows, config, 64, empty(len(rows)))
    (batch,) = loss.batches(range(len(rows)))
    recorder: Any = {
        "sums": lambda: BlockSums(batch.index, torch.ones(len(rows), 2)),
        "rollouts": lambda: PerRollout(batch.index),
        "tokens": PerToken,
    }[b.keeps]()
    with p.adapter.view("full"), p.adapter.recording(recorder):
        new = p.logps(batch)
        loss.backward(batch, new, new.detach(), torch.ones(len(rows)))
    return recorder


def nbytes(tensors: Iterator[torch.Tensor] | list[torch.Tensor]) -> int:
    """Of the distinct storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@gate.invariant("the shapes that are written down are those of models with the published number of parameters")
def _():
    published = {"0.6B": 0.596e9, "1.7B": 1.721e9, "4B": 4.022e9, "8B": 8.191e9}
    for name, s in PUBLISHED.items():
        config = Qwen3Config(
            hidden_size=s.hidden,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            num_key_value_heads=s.kv_heads,
            head_dim=s.head_dim,
            intermediate_size=s.intermediate,
            vocab_size=s.vocab,
            tie_word_embeddings=s.tied,
        )
        with torch.device("meta"):
            model = Qwen3ForCausalLM(config)
        assert sum(p.numel() for p in model.parameters()) == s.parameters, name
        assert sum(m.weight.numel() for _, m in target_linears(model)) == s.target_parameters, name
        assert abs(s.parameters / published[name.rpartition("-")[2]] - 1) < 1e-3, (name, s.parameters)
    return ", ".join(f"{name} {s.parameters:,}" for name, s in PUBLISHED.items())


@gate.invariant("weights, adapter, optimizer, checkpoint, cache and kept gradients are counted within 0.01 %")
def _():
    return counted(("lora2r", False, 4), ("delta_s", True, 2))


@gate.invariant("the same in the other type, and with a shared basis", slow=True)
def _():
    return counted(("lora2r", False, 2), ("delta_s", False, 4))


def counted(*cases: tuple[str, bool, int]) -> str:
    found = []
    for kind, distinct, width in cases:
        w = work(width, kind, distinct=distinct, update=Backward(8, 64, 2048, "rollouts"))
        p = policy(w)
        modules = p.adapter.modules
        own = nbytes([t for m in modules for n, t in (*m.named_parameters(), *m.named_buffers()) if n != "weight"])
        optimizer = Optimizer(p.adapter, OptimConfig())
        p.adapter.zero_grad()
        kept = backward(w, p)
        optimizer.propose(1e-3)
        path = FOLDER / "counted.safetensors"
        save_checkpoint(path, p.adapter, CheckpointInfo("m", "r", "fp32"), step=0, config={})
        with safe_open(path, framework="pt") as handle:
            stored = nbytes([handle.get_tensor(name) for name in handle.keys()])  # noqa: SIM118 - not a mapping
        assert path.stat().st_size - stored < 20_000, path.stat().st_size
        cache = RowCache(p.model)  # ty: ignore[invalid-argument-type]
        p.model(torch.zeros((2, 10), dtype=torch.long), past_key_values=cache.cache, use_cache=True)
        cache.repeat(torch.tensor([0, 0, 0, 1, 1]), 30)
        pairs = {
            "weights": (
                w.shape.parameters * width,
                nbytes([q for n, q in p.model.named_parameters() if q.requires_grad is False]),
            ),
            "adapter": (adapter_bytes(w), own),
            "moments": (
                8 * trained(w),
                nbytes([t for s in optimizer.inner.state.values() for k, t in s.items() if k != "step"]),
            ),
            "update": (4 * trained(w), nbytes([q.data for q in optimizer.updates])),
            "checkpoint": (checkpoint_bytes(w), stored),
            "cache": (
                cache_bytes(w, 5, 30),
                nbytes([t for layer in cache._slotted for t in (layer._keys, layer._values)]),
            ),
            "rollouts": (rollout_bytes(w, 8), nbytes([g for _, own in kept.kept.values() for g in own.values()])),
        }
        if kind == "delta_s":
            tokens = backward(dataclasses.replace(w, update=Backward(8, 64, 2048, "tokens")), p)
            held = nbytes([t for _, factors in tokens.kept.values() for t in factors])
            pairs["tokens"] = (token_factor_bytes(w, 512), held)
        for what, (said, real) in pairs.items():
            assert abs(said / real - 1) < 1e-4, f"{kind} {width}: {what} {said} for {real}"
            found.append(abs(said / real - 1))
    return f"{len(found)} parts, the largest error {max(found):.4%}"


UPDATES: tuple[tuple[int, str, Keeps, bool, bool], ...] = (
    # bytes of a number, adapter, what is kept, checkpointed, KL
    (4, "lora2r", "sums", True, True),
    (4, "lora2r", "rollouts", True, False),
    (4, "lora2r", "rollouts", False, True),
    (4, "delta_s", "sums", False, False),
    (4, "delta_s", "rollouts", True, False),
    (4, "delta_s", "tokens", True, True),
    (2, "lora2r", "rollouts", True, True),
    (2, "delta_s", "tokens", False, False),
)


@gate.invariant("the measured peak of an update is the estimate's within 10 % (bf16 on a CPU: 25 %)", slow=True)
def _():
    # In bf16 a CPU's matrix products make temporaries of their own.
    batch = Backward(8, 128, 2048)
    small = [
        work(width, kind, checkpointed=checkpointed, kl=kl, update=dataclasses.replace(batch, keeps=keeps))
        for width, kind, keeps, checkpointed, kl in UPDATES
    ]
    wide = work(4, chunk=256, update=batch)
    found = [
        _ratio(w) for w in (*small, dataclasses.replace(wide, shape=dataclasses.replace(wide.shape, vocab=20_000)))
    ]
    return f"{len(found)} updates, estimate / measured {min(found):.2f} to {max(found):.2f}"


def _ratio(w: Work) -> float:
    p = policy(w)
    p.adapter.zero_grad()
    ratio = total(backward_terms(w, w.update)) / peak(lambda: backward(w, p))
    where = f"{w.adapter} {w.update.keeps} width {w.width} checkpointed {w.checkpointed} kl {w.kl}"
    assert abs(ratio - 1) < (0.10 if w.width == 4 else 0.25), f"{where}: {ratio:.2f}"
    return ratio


@gate.invariant("the measured peak of decoding in fp32 is the estimate's within 10 %", slow=True)
def _():
    found = []
    for new, rows, copies, vocab, top_k, top_p in (
        (200, 32, 8, 1024, 0, 1.0),
        (16, 16, 4, 20_000, 0, 0.95),
        (16, 16, 4, 20_000, 20, 0.95),
        (8, 16, 1, 1024, 0, 1.0),
    ):
        s, base = Sampling(rows, rows // copies, 200, new, top_p, top_k), work(4)
        w = dataclasses.replace(base, shape=dataclasses.replace(base.shape, vocab=vocab))
        p, params = policy(w), SamplingParams(max_new=new, temperature=1.0, top_p=top_p, top_k=top_k)
        prompts = [r.prompt_ids for r in rollouts(rows // copies, 200, 1) for _ in range(copies)]
        model: Any = p.model
        with p.adapter.merged("full"):
            real = peak(functools.partial(decode, model, prompts, list(range(rows)), params, frozenset()))
        found.append(total(sampling_terms(w, s)) / real)
        assert abs(found[-1] - 1) < 0.10, f"{s}: {found[-1]:.2f}"
    return f"{len(found)} batches, estimate / measured {min(found):.2f} to {max(found):.2f}"


def of_4b(**changed: Any) -> Work:
    """Qwen3-4B, groups of 8 of 3,072 tokens in one micro-batch."""
    s = Sampling(32, 8, 1536, 1536, 0.95, 20, 2)
    w = Work(
        *(PUBLISHED["Qwen/Qwen3-4B"], 2, "lora2r", 32, False, True, s, s, Backward(8, 3072, 24_576), "nothing", False),
        *(Backward(48, 500, 8192, "rollouts", half_copy=True), 12, 5, 1024, True, True),
    )
    return dataclasses.replace(w, **changed)


@gate.invariant("the figures of Qwen3-4B are those computed for it before, and stand in docs/memory.md")
def _():
    w = of_4b()
    saved = w.shape.layers * w.update.tokens * w.shape.hidden * 2 + w.update.tokens * layer_saved(w)
    known = {
        "weights": (w.shape.parameters * 2, 8.0e9),
        "LoRA with gradient and Adam": (16 * trained(w), 2.1e9),
        "A0, B0": (4 * trained(w), 0.5e9),
        "activations checkpointed": (saved, 8.2e9),
        "activations of all layers": (w.shape.layers * w.update.tokens * layer_saved(w), 133e9),
        "KV cache": (cache_bytes(w, 32, 3072), 14.5e9),
        "gradients of 8 rollouts": (rollout_bytes(w, 8), 2.1e9),
    }
    for what, (said, before) in known.items():
        assert abs(said / before - 1) < 0.06, f"{what}: {said / 1e9:.2f} GB, computed before as {before / 1e9}"
    text = PAGE.read_text(encoding="utf-8")
    for phase, size in estimate(w).totals().items():
        assert f"| {phase} | {size / 1e9:.1f} GB |" in text, f"docs/memory.md lacks `| {phase} | {size / 1e9:.1f} GB |`"
    return ", ".join(f"{what} {said / 1e9:.2f}" for what, (said, _) in known.items()) + " GB"


if __name__ == "__main__":
    gate.main()
