"""The memory that the documents state for 4B is that of Qwen3-4B's shapes.

- sizes of v_hack on both adapters, of the gradients of an extraction, and of delta_s's bases
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from _gate import Gate
from vgrout.adapter.base import target_linears

gate = Gate(__doc__)
PAGE = Path(__file__).parents[1] / "docs" / "directions.md"


@gate.invariant("docs/directions.md states the sizes that follow from the shapes of Qwen3-4B")
def _():
    config = Qwen3Config(
        hidden_size=2560,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=9728,
        vocab_size=151_936,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    shapes = [tuple(linear.weight.shape) for _, linear in target_linears(model)]
    lora = sum(32 * (o + i) for o, i in shapes)
    basis = sum(min(o, i) * (o + i) for o, i in shapes)
    vector = sum(min(o, i) for o, i in shapes)
    text = PAGE.read_text()
    gb = lambda numbers, bytes_each: f"{numbers * bytes_each / 1e9:.2f} GB"  # noqa: E731
    wanted = {
        "modules": f"{len(shapes)} modules",
        "lora2r coordinates": f"{lora:,} coordinates x 12 | {gb(12 * lora, 2)} in bf16, {gb(12 * lora, 4)} in fp32",
        "in use": f"| x 5 | {gb(5 * lora, 2)} in bf16",
        "extraction": f"x 48, fp32 | {gb(48 * lora, 4)}",
        "bases": f"{basis:,} | {gb(basis, 2)} in bf16",
        "delta_s": f"{vector:,} coordinates x 12 | {gb(12 * vector, 2)} in bf16",
    }
    for what, figure in wanted.items():
        assert figure in text, f"{what}: the page lacks {figure!r}"
    return "; ".join(wanted.values())


if __name__ == "__main__":
    gate.main()
