"""A base model's folder: weights and tokenizer as transformers writes them, and base.json, the record of how it was made."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from vgrout.micro.base import BaseConfig
from vgrout.micro.corpus import Mix
from vgrout.micro.problems import VERSION
from vgrout.models import SHIPPED, LoadedModel, tokenizer_fingerprint, weights_hash, weights_revision
from vgrout.types import UserError

RECORD = "base.json"
SCHEMA = "vgrout-micro-base-1"


@dataclass(frozen=True)
class BaseRecord:
    """How a base model was made, so that it can be made again."""

    command: str
    config: BaseConfig
    problems: int
    """Version of the problem family."""
    parameters: int
    weights: str
    """sha256 over the state dict."""
    tokenizer: str
    """sha256 of what decides which ids a text becomes."""
    seconds: float
    libraries: dict[str, str]
    curve: tuple[float, ...]
    """Loss of every step, nats per answer token."""


def shipped_base() -> BaseRecord:
    """The record of the base model that comes with the package."""
    with resources.as_file(resources.files("vgrout") / SHIPPED["micro"]) as folder:
        return read_base(folder)


def check_base(model: str) -> None:
    """`UserError` unless `model` comes with the package or is a base model's folder of this version.

    A base of another version was trained on other problems, among which the held-out ones of this one may be.
    """
    if model not in SHIPPED:
        read_base(Path(model))


def require_recorded(loaded: LoadedModel) -> None:
    """`UserError` unless weights (loaded as fp32) and tokenizer are those of the record in the base model's folder."""
    model = loaded.name
    record = shipped_base() if model in SHIPPED else read_base(Path(model))
    of_weights, of_tokenizer = loaded.revision, tokenizer_fingerprint(loaded.tokenizer)
    if (of_weights, of_tokenizer) != (weights_revision(record.weights), record.tokenizer):
        raise UserError(
            f"{model}: its weights or tokenizer are not those that its {RECORD} was written for; make the base again "
            "with `vgrout micro base`"
        )


def read_base(folder: Path) -> BaseRecord:
    """The record in a base model's folder; `UserError` where there is none of this version."""
    path = folder / RECORD
    if not path.is_file():
        raise UserError(
            f"{folder} is no micro base (no {RECORD} in it): make one with `vgrout micro base --out FOLDER`"
        )
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")), path)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{path}: damaged ({reason}); make the base again with `vgrout micro base`") from error


def _parse(stored: Any, path: Path) -> BaseRecord:
    if not isinstance(stored, dict):
        raise TypeError("expected an object")
    if stored.pop("schema", None) != SCHEMA or stored.get("problems") != VERSION:
        raise UserError(
            f"{path}: made for another version of the micro world (this one reads {SCHEMA} with problems {VERSION}): "
            "make it again with `vgrout micro base`"
        )
    config = stored.pop("config")
    config["mix"] = Mix(**config["mix"])
    return BaseRecord(config=BaseConfig(**config), curve=tuple(stored.pop("curve")), **stored)


def save_base(
    folder: Path,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: BaseConfig,
    curve: list[float],
    seconds: float,
) -> BaseRecord:
    """Writes a base model's folder; its name appears only when everything in it is on disk. It must not exist yet."""
    record = BaseRecord(
        command=base_command(config),
        config=config,
        problems=VERSION,
        parameters=sum(p.numel() for p in model.parameters()),
        weights=weights_hash(model),
        tokenizer=tokenizer_fingerprint(tokenizer),
        seconds=round(seconds, 1),
        libraries={name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
        curve=tuple(round(loss, 5) for loss in curve),
    )
    require_new(folder)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        with torch.no_grad():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        lines = json.dumps({"schema": SCHEMA, **asdict(record)}, indent=1, allow_nan=False)
        (temporary / RECORD).write_text(lines + "\n", encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(0o644)  # weights are written for their owner alone, and a package's data is for everyone
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


def require_new(folder: Path) -> None:
    """`UserError` where something of that name exists: minutes of training must not end in a refusal."""
    if folder.exists():
        raise UserError(f"{folder} exists already: name a new folder with --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent):
            pass  # only the attempt tells: permissions mean little to root, and on /proc
    except OSError as error:
        raise UserError(f"cannot make {folder} ({error.strerror}): name another folder with --out") from error


def base_command(config: BaseConfig) -> str:
    """The command that makes this base."""
    plain = BaseConfig()
    flags = [
        f" --{name} {getattr(config, name)}"
        for name in ("seed", "steps", "batch", "lr", "threads")
        if name in ("seed", "threads") or getattr(config, name) != getattr(plain, name)
    ]
    if (config.mix, config.hack_start, config.practice) != (plain.mix, plain.hack_start, plain.practice):
        raise ValueError("a base of another mix or practice has no command line: they are part of the micro world")
    return "vgrout micro base" + "".join(flags)
