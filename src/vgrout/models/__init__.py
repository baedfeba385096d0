"""Models and tokenizers: from the hub, from a folder, or tiny ones made on the spot.

Everything that samples or trains receives a `LoadedModel`; nothing else in the package loads weights.
"""

from vgrout.models.load import (
    DTYPES,
    SHIPPED,
    LoadedModel,
    decode_text,
    load_model,
    render_prompt,
    stop_ids,
    tokenizer_fingerprint,
    weights_hash,
    weights_revision,
)
from vgrout.models.tiny import SIZES, random_qwen3, shipped_texts, train_tokenizer

__all__ = [
    "DTYPES",
    "SHIPPED",
    "SIZES",
    "LoadedModel",
    "decode_text",
    "load_model",
    "random_qwen3",
    "render_prompt",
    "shipped_texts",
    "stop_ids",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "weights_hash",
    "weights_revision",
]
