"""Load a causal language model with its tokenizer, ready for an adapter: eval mode, frozen, sdpa attention."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vgrout.models.tiny import SIZES, random_qwen3, shipped_texts, train_tokenizer
from vgrout.types import UserError

SHIPPED = {"micro": "micro/data/base"}
"""Trained models that come with the package, and the folder that holds each."""
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A frozen base model with what identifies it in checkpoints and artefacts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """Hub id, folder, or the name of a tiny model."""
    revision: str | None
    """Commit of the hub; for a tiny model seed and tokenizer; for a local folder and the shipped model the weights' hash."""
    dtype: str


def load_model(
    name: str, *, dtype: str = "fp32", device: str = "cpu", seed: int = 0, revision: str | None = None
) -> LoadedModel:
    """Load `name`: `tiny`, `tiny:a`, `tiny:b` (made on the spot from `seed`), `micro`, a local folder, or a hub id.

    `dtype` is a key of DTYPES, `device` is `cpu`, `cuda` or `cuda:N`. Raises UserError for an unknown dtype or device,
    for a model that is not there, and for a tokenizer without chat template or end token.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    target = _device(device)
    if name in SIZES:
        if revision is not None:
            raise UserError(f"model {name!r} is made on the spot and has no revision {revision!r}: leave revision out")
        size = SIZES[name]
        tokenizer = train_tokenizer(shipped_texts(), size.vocab)
        model: PreTrainedModel = random_qwen3(size, tokenizer, seed)
        revision = f"seed{seed}-{tokenizer_fingerprint(tokenizer)[:12]}"
    elif name.startswith("tiny"):
        raise UserError(f"model {name!r} is unknown: the tiny models are {', '.join(SIZES)}")
    elif name in SHIPPED:
        if revision is not None:
            raise UserError(
                f"model {name!r} ships with the package and has no revision {revision!r}: leave revision out"
            )
        with resources.as_file(resources.files("vgrout") / SHIPPED[name]) as folder:
            tokenizer, model, revision = _pretrained(str(folder), DTYPES[dtype], None)
    else:
        tokenizer, model, revision = _pretrained(name, DTYPES[dtype], revision)
    # Parameters alone: a cast of the whole module would round the frequencies of the rotary embedding, which are buffers
    # that transformers keeps in fp32 whatever the dtype.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    model = model.to(target).eval().requires_grad_(False)
    return LoadedModel(model=model, tokenizer=tokenizer, name=name, revision=revision, dtype=dtype)


def _device(device: str) -> torch.device:
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise UserError(f"device {device!r} is unknown: choose cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            "use device cpu, or install a CUDA build of torch"
        )
    return torch.device(device)


def _pretrained(
    name: str, dtype: torch.dtype, revision: str | None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, str | None]:
    """Tokenizer, model and resolved revision of a folder or a hub id."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, revision=revision, attn_implementation="sdpa")
    except (OSError, ValueError, SafetensorError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        at = f" at revision {revision!r}" if revision else ""
        raise UserError(
            f"model {name!r}{at} could not be loaded ({first_line}): download it with `just download-model`, "
            "or name a local folder that holds config.json, weights and tokenizer"
        ) from error
    if tokenizer is None or tokenizer.chat_template is None:
        raise UserError(f"model {name!r} has no chat template: choose an instruction-tuned model or add a template")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of model {name!r} has no end token: set eos_token in its tokenizer_config.json")
    model = cast(PreTrainedModel, model)
    # A folder's name says nothing about its content, which may be replaced between a run and its checkpoint's next use.
    is_folder = Path(name).is_dir()
    resolved = weights_revision(weights_hash(model)) if is_folder else getattr(model.config, "_commit_hash", None)
    return tokenizer, model, resolved


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Token ids that end a completion: the tokenizer's end token and those of the model's generation settings."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    extra = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return frozenset([tokenizer.eos_token_id, *extra])


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]]) -> list[int]:
    """Token ids of (role, content) turns in the model's chat form, thinking off, ready for the answer to follow."""
    turns = [{"role": role, "content": content} for role, content in messages]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=False, tokenize=False)
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens left out, nothing tidied up."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything that decides which ids a text becomes: vocabulary, merges, special tokens, chat template."""
    backend = tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(f"{backend}\x00{tokenizer.chat_template}".encode()).hexdigest()


def weights_revision(of_weights: str) -> str:
    """The revision of a model that is known by its weights, from their hash."""
    return f"weights-{of_weights[:12]}"


def weights_hash(model: torch.nn.Module) -> str:
    """sha256 over every entry of the state dict, by name and bytes (fp32 or bf16 as it is held)."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
