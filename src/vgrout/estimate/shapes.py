"""Shapes of models as numbers: what their parameters, caches and activations are counted from, without any weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vgrout.models import SHIPPED, SIZES
from vgrout.types import MissingHere, UserError


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    """The output head is the embedding."""

    @property
    def q(self) -> int:
        """Entries of a token's queries."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Entries of a token's keys, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of one layer's linears, all of which the adapter wraps."""
        h, q, kv, f = self.hidden, self.q, self.kv, self.intermediate
        attention = {"q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q)}
        return attention | {"gate_proj": (f, h), "up_proj": (f, h), "down_proj": (h, f)}

    @property
    def target_parameters(self) -> int:
        """Of all wrapped linears."""
        return self.layers * sum(o * i for o, i in self.linears.values())

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        norms = self.layers * (2 * self.hidden + 2 * self.head_dim) + self.hidden
        return embeddings + norms + self.target_parameters


PUBLISHED = {
    "Qwen/Qwen3-0.6B": Shape(1024, 28, 16, 8, 128, 3072, 151_936, True),
    "Qwen/Qwen3-1.7B": Shape(2048, 28, 16, 8, 128, 6144, 151_936, True),
    "Qwen/Qwen3-4B": Shape(2560, 36, 32, 8, 128, 9728, 151_936, True),
    "Qwen/Qwen3-8B": Shape(4096, 36, 32, 8, 128, 12_288, 151_936, False),
}
"""As the config.json of each model on the hub has them."""


def shape_of(name: str, tokens: int | None = None) -> Shape:
    """The shape of a model by its name, from numbers that are here; nothing is downloaded.

    `tokens` is the length of a tiny model's tokenizer, which decides its vocabulary. Raises `UserError` for a hub id whose
    shape is not written down here, and for a folder whose config.json is missing or of another family.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name in SIZES:
        s = SIZES[name]
        vocab = (tokens or s.vocab) if s.tie_embeddings else max(s.vocab, tokens or 0)
        return Shape(
            s.hidden, s.layers, s.heads, s.kv_heads, s.hidden // s.heads, s.intermediate, vocab, s.tie_embeddings
        )
    if name in SHIPPED:
        with resources.as_file(resources.files("vgrout") / SHIPPED[name]) as folder:
            return _of_config(folder / "config.json")
    if Path(name).is_dir():
        return _of_config(Path(name) / "config.json")
    raise MissingHere(
        f"model {name}: its shape is not written down here (known: {', '.join(PUBLISHED)}); give --model.name a local folder "
        "with its config.json"
    )


def _of_config(path: Path) -> Shape:
    if not path.is_file():
        raise MissingHere(f"{path}: no such file; a model's folder holds config.json, weights and tokenizer")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if config["model_type"] != "qwen3":
            raise UserError(f"{path}: model_type {config['model_type']!r}; memory is counted for qwen3 models only")
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            hidden,
            config["num_hidden_layers"],
            heads,
            config["num_key_value_heads"],
            config.get("head_dim") or hidden // heads,
            config["intermediate_size"],
            config["vocab_size"],
            bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a model's configuration ({type(error).__name__}: {error}); download it again"
        ) from error
