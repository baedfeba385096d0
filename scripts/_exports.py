"""What the gates on export share: runs without their training, and what someone without this package loads."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from _cli import FOLDER
from vgrout.adapter import AdapterConfig
from vgrout.adapter.base import Adapter
from vgrout.adapter.checkpoint import load_checkpoint, save_checkpoint
from vgrout.config import RunConfig
from vgrout.evals import SCHEMA, tabulate
from vgrout.export import export_run
from vgrout.inputs import load_policy
from vgrout.measure import COLUMNS
from vgrout.models import LoadedModel, load_model
from vgrout.presets import preset
from vgrout.run.folder import RunFolder
from vgrout.session import identity
from vgrout.stored import stored_config
from vgrout.types import View

os.environ["VGROUT_CACHE"] = str(FOLDER / "cache")
VIEWS: tuple[View, ...] = ("deploy", "full")
CLAMPED = AdapterConfig(rank=24)
"""The tiny model's k_proj and v_proj are 32 wide and hold 16."""
TEXTS = ("def add(a, b):", "Return the largest element of a list.", "x" * 40)
PROVENANCE = ("README.md", "export.json")
"""Files that name the checkpoint and so differ where it does."""


def configured(intervention: str = "absorb", **changes: Any) -> RunConfig[Any]:
    return dataclasses.replace(preset("smoke", intervention), allow_oracle=True, **changes)


def move(adapter: Adapter, size: float, seed: int = 0, block: str | None = None) -> None:
    """Random steps away from the init, `size` times the spread of the init's entries (delta_s has none: times 1)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, t in adapter.trainables():
            spread = float(t.init.std()) or 1.0
            for name in t.parts if block is None else t.parts.keys() & {block}:
                part = t.value[t.parts[name]]
                part += size * spread * torch.randn(part.shape, generator=generator)


def rows(views: dict[str, tuple[int, int]], n: int = 40) -> list[dict[str, Any]]:
    """Rows of an evaluation with so many (hacks, solves) of n by view, all in one mode and with fenced code."""
    return [
        {
            "split": "held-out",
            "view": view,
            "problem_id": str(i),
            "mode": "run_tests",
            "markers": "eval",
            "infra": False,
            "exploited": i < hacks,
            "gt_correct": i >= n - solves,
            "format_ok": True,
            "reward": 0.0,
        }
        for view, (hacks, solves) in views.items()
        for i in range(n)
    ]


COUNTS = {"base": (3, 21), "full": (17, 11), "deploy": (0, 19)}


@functools.cache
def made(label: str, config: RunConfig[Any], moved: float = 0.3) -> Path:
    """A finished run without its training: the checkpoints 2 and 6, which differ, and an evaluation of the last."""
    loaded, policy = load_policy(config)
    with RunFolder.create(FOLDER, config.to_dict(), COLUMNS, label=label, name=label) as stored:
        for step in (2, 6):
            move(policy.adapter, moved, seed=step)
            path = stored.checkpoint_path(step)
            save_checkpoint(path, policy.adapter, identity(loaded), step=step, config=config.to_dict())
        found = rows(COUNTS)
        cells = [dataclasses.asdict(cell) for cell in tabulate(found)]
        result = {"schema": SCHEMA, "problems": "held-out part of builtin", "samples": 1, "views": list(COUNTS)}
        rest = {"missing_layers": [], "step": 6, "deploy_view": "deploy", "cells": cells, "rows": found}
        stored.write_json("eval.json", result | rest)
    return stored.path


def opened(folder: Path, checkpoint: Path | None = None) -> tuple[LoadedModel, Adapter]:
    """The run's model with its adapter as the checkpoint (default: the last) has it."""
    loaded, policy = load_policy(stored_config(RunFolder.open(folder)))
    load_checkpoint(checkpoint or RunFolder.open(folder).checkpoints()[-1], policy.adapter, identity(loaded))
    return loaded, policy.adapter


def out_of(label: str) -> Path:
    folder = FOLDER / "exports" / label
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def export(folder: Path, view: str, form: Any, label: str, **options: Any) -> Path:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return export_run(folder, view, form, out_of(label), **options)


def own_model() -> str:
    """A folder with a model of the user's: untied, with biases, and its tokenizer."""
    folder = FOLDER / "own-model"
    if not folder.exists():
        tokenizer = load_model("tiny").tokenizer
        torch.manual_seed(3)
        config = Qwen3Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=48,
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            initializer_range=0.1,
            tie_word_embeddings=False,
            attention_bias=True,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = Qwen3ForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.uniform_(-0.3, 0.3)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def logits(model: nn.Module, prompts: Iterable[list[int]]) -> list[Tensor]:
    return [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in prompts]


def plain(folder: Path, base: str | None) -> tuple[nn.Module, list[list[int]]]:
    """The exported model in fp32, and the texts as its tokenizer reads them: what someone without this package has."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompts = [list(tokenizer(text)["input_ids"]) for text in TEXTS]
    if base is None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), prompts
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(folder)).eval(), prompts


def gap(folder: Path, exported: Path, view: View, base: str | None) -> tuple[float, float]:
    """Largest difference of logits between the exported folder and the view, and between the view and the base."""
    loaded, adapter = opened(folder)
    model, prompts = plain(exported, base)
    with adapter.view(view):
        wanted = logits(loaded.model, prompts)
    with adapter.view("base"):
        before = logits(loaded.model, prompts)
    return largest(logits(model, prompts), wanted), largest(wanted, before)


def largest(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def files(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
