"""Shippable checkpoints: the differences A - A0, B - B0 in bf16, plus what regenerates the init (spec 3.1).

bf16 copies of A and B themselves would drown a young delta in rounding (55 % error when the weights moved by 0.3 %);
the differences keep their relative precision. Loading checks everything that would make the numbers mean something else.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vgrout.adapter.base import Adapter
from vgrout.types import UserError

FORMAT = "vgrout-adapter-1"
METADATA = "vgrout"


@dataclass(frozen=True)
class CheckpointInfo:
    """The identity that a checkpoint must share with the run that loads it."""

    model: str
    revision: str
    dtype: str


def save_checkpoint(path: Path, adapter: Adapter, info: CheckpointInfo, *, step: int, config: dict[str, Any]) -> None:
    """Writes one safetensors file; the name appears only when the file is complete and on disk.

    Raises `UserError` where the disk does not take it; nothing is left behind then.
    """
    tensors = {
        name: (t.value.detach() - t.init).to(torch.bfloat16).cpu().contiguous() for name, t in adapter.trainables()
    }
    # One entry: safetensors writes several in an order of their own, and equal checkpoints should be equal files.
    metadata = {METADATA: json.dumps(_identity(adapter, info) | {"step": step, "config": config}, sort_keys=True)}
    temporary = path.with_name(f".{path.name}.tmp")  # hidden, so that no listing takes it for a checkpoint
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors lets only the user read what it writes; colleagues read a run
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)  # the rename itself must survive a power cut
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write checkpoint {path}: {error}; check the disk, or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: Path, adapter: Adapter, info: CheckpointInfo, *, intervention: str | None = None) -> int:
    """Sets the adapter to the checkpoint's and returns its step.

    Raises `UserError` naming what differs: another model, revision, dtype, adapter, rank, seed or set of modules; and,
    where `intervention` is given, a checkpoint that another intervention trained.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file; `ls {path.parent}` shows what is there")
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = json.loads((handle.metadata() or {}).get(METADATA, "{}"))
            found = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"checkpoint {path}: not a complete safetensors file ({error}); use another checkpoint"
        ) from None
    _require_same(path, metadata, adapter, info)
    trained_by = metadata["config"].get("intervention")
    if intervention is not None and trained_by != intervention:
        raise UserError(
            f"checkpoint {path}: intervention {trained_by} trained it, this run's is {intervention}; evaluate it in the "
            "folder of the run that wrote it"
        )
    wanted = dict(adapter.trainables())
    if found.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        raise UserError(f"checkpoint {path}: it lacks {missing[:3]} and has {extra[:3]} besides; use this model's own")
    for name, t in wanted.items():
        if found[name].shape != t.value.shape:
            raise UserError(
                f"checkpoint {path}: {name} has shape {list(found[name].shape)}, expected {list(t.value.shape)}"
            )
    with torch.no_grad():
        for name, t in wanted.items():
            t.value.copy_(t.init + found[name].to(t.value))
    return int(metadata["step"])


def _identity(adapter: Adapter, info: CheckpointInfo) -> dict[str, Any]:
    return {"format": FORMAT, "model": info.model, "revision": info.revision, "dtype": info.dtype} | adapter.identity()


def _require_same(path: Path, metadata: dict[str, Any], adapter: Adapter, info: CheckpointInfo) -> None:
    if metadata.get("format") != FORMAT:
        raise UserError(f"checkpoint {path}: format {metadata.get('format')!r}, expected {FORMAT!r}; it is not ours")
    for key, expected in _identity(adapter, info).items():
        got = metadata.get(key)
        if got != expected:
            if isinstance(got, dict) and isinstance(expected, dict):
                names = sorted(n for n in got.keys() | expected.keys() if got.get(n) != expected.get(n))
                got, expected = ({n: ranks.get(n, "absent") for n in names[:3]} for ranks in (got, expected))
            raise UserError(
                f"checkpoint {path}: {key} is {got}, this run has {expected}; load it with the settings it was made with"
            )
