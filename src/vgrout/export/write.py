"""Puts an export into files: under a hidden name beside the folder, which takes its own name when all of it is right."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vgrout.adapter.base import Adapter
from vgrout.export.tensors import PREFIX, exported
from vgrout.models import SHIPPED, SIZES, LoadedModel
from vgrout.run.disk import disk_errors, sync_folder
from vgrout.types import UserError, View

WEIGHTS = "adapter_model.safetensors"
BASE = "base"
"""Folder of the base model inside a LoRA export, for models that no hub and no folder of the user's holds."""


@contextmanager
def staged(out: Path) -> Generator[Path]:
    """A hidden folder that becomes `out` when the block ends well, and is removed, with parents it made, when it does not.

    Raises `UserError` before the block where `out` exists or cannot be made.
    """
    require_absent(out)
    made = [folder for folder in out.absolute().parents if not folder.exists()]
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        with disk_errors(out, "make"):
            temporary.mkdir(parents=True)
        yield temporary
        with writing(out):
            _settle(temporary)
            require_absent(out)
            temporary.rename(out)
            sync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # not empty: the export is in it
                folder.rmdir()


def require_absent(out: Path) -> None:
    """`UserError` where something has that name."""
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists already: name a new folder, or remove it first")


@contextmanager
def writing(out: Path) -> Generator[None]:
    """Turns what the disk says into a `UserError` of one line."""
    try:
        with disk_errors(out):
            yield
    except SafetensorError as error:
        raise UserError(f"cannot write {out}: {error}; check the disk, or choose another folder") from error


def _settle(folder: Path) -> None:
    """Everyone may read what is in the folder, and all of it is on the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            sync_folder(path)
            continue
        path.chmod(0o644)  # safetensors writes for its owner alone
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)


def lora_config(adapter: Adapter, loaded: LoadedModel, tensors: dict[str, Tensor]) -> LoraConfig:
    """The description that peft reads. alpha is the rank in every module, so nothing is scaled.

    Modules of a smaller rank than the largest are named by patterns that match the whole name and nothing else.
    """
    ranks = {m.name: len(tensors[f"{PREFIX}{m.name}.lora_A.weight"]) for m in adapter.modules}
    rank = max(ranks.values())
    clamped = {f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank}
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=loaded.name,
        revision=loaded.revision if from_hub(loaded.name) else None,
        inference_mode=True,
        r=rank,
        lora_alpha=rank,
        rank_pattern=clamped,
        alpha_pattern=dict(clamped),
        lora_dropout=0.0,
        bias="none",
        target_modules=list(ranks),
    )
    config.target_modules = sorted(ranks)  # peft keeps a set, whose order would differ from one file to the next
    return config


def write_peft(
    folder: Path, adapter: Adapter, view: View, dtype: torch.dtype, loaded: LoadedModel, plain: LoadedModel | None
) -> None:
    """A LoRA folder as peft writes it, with the tokenizer; and `plain` beside it, where the base model has no other home."""
    tensors = dict(exported(adapter, view, "peft", dtype))
    with writing(folder):
        lora_config(adapter, loaded, tensors).save_pretrained(str(folder))
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        loaded.tokenizer.save_pretrained(folder)
        if plain is not None:
            save_model(folder / BASE, plain.model, plain.tokenizer)


def write_merged(folder: Path, adapter: Adapter, view: View, dtype: torch.dtype, plain: LoadedModel) -> None:
    """A model folder as transformers writes it. `plain` has nothing of ours in it, and afterwards the view's weights."""
    model = plain.model.to(dtype)
    with torch.no_grad():
        for name, weight in exported(adapter, view, "merged", dtype):
            model.get_parameter(name).copy_(weight)
    with writing(folder):
        save_model(folder, model, plain.tokenizer)


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def from_hub(name: str) -> bool:
    """Whether a model's name is the id of a hub, so that its revision is a commit there."""
    return not made_here(name) and not Path(name).is_dir()


def made_here(name: str) -> bool:
    """Whether a model is made on the spot or ships with this package, so that others can only have it as a folder."""
    return name in SIZES or name in SHIPPED
