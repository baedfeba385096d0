"""Tiny random Qwen3 models with a tokenizer of their own, made in a second without a download.

They carry every test of the pipeline: same architecture family, chat form and special tokens as the Qwen3 models that
real runs use, at a size that a laptop trains. Weights depend on the seed alone, the tokenizer on the shipped text alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK_TOKENS = ("<think>", "</think>")

# ChatML. As with Qwen3, thinking is switched off by an empty think block in front of the answer.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif -%}
{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes that tell one tiny model from another."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tie_embeddings: bool


SIZES: dict[str, Size] = {
    "tiny": Size(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, vocab=1024, tie_embeddings=True),
    # Benchmark sizes: 3.4M and 32.5M parameters.
    "tiny:a": Size(hidden=192, layers=6, heads=6, kv_heads=2, intermediate=576, vocab=2048, tie_embeddings=False),
    "tiny:b": Size(hidden=512, layers=8, heads=8, kv_heads=2, intermediate=1536, vocab=8192, tie_embeddings=False),
}


def shipped_texts() -> list[str]:
    """The texts that come with the package: a page of tasks and programs, and the built-in problems where present."""
    package = resources.files("vgrout")
    texts = [(package / "models" / "text.txt").read_text(encoding="utf-8")]
    problems = package / "env" / "data" / "builtin.jsonl"
    if problems.is_file():
        for line in problems.read_text(encoding="utf-8").splitlines():
            texts.extend(_strings(json.loads(line)))
    return texts


def _strings(value: object) -> Iterator[str]:
    """Every string inside a JSON value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int = 16_384, phrases: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in Qwen's form with at most `vocab_size` tokens, special ones included.

    All 256 bytes are tokens and nothing is normalised, so every text survives encoding and decoding unchanged.
    Each of `phrases` is one token wherever it occurs: fixed sentences then cost one position of the model.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(THINK_TOKENS) - len(phrases),
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in (*THINK_TOKENS, *phrases)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def random_qwen3(size: Size, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of the given size with weights drawn from `seed` on the CPU in fp32; torch's own RNG is left as it was.

    The vocabulary is the size's, or the tokenizer's where that is smaller for tied (test) models: a test model must
    not sample ids that stand for no text.
    """
    config = Qwen3Config(
        vocab_size=len(tokenizer) if size.tie_embeddings else max(size.vocab, len(tokenizer)),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.hidden // size.heads,
        max_position_embeddings=16_384,
        tie_word_embeddings=size.tie_embeddings,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
