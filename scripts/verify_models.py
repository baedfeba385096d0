"""Models and tokenizers: made on the spot the same way everywhere, loaded without surprises.

Invariants
- every text survives encoding and decoding, byte for byte, and every token id decodes;
- the chat form opens and closes every turn and switches thinking off with an empty block;
- the same seed gives the same weights and tokenizer, in any process; another seed gives other weights; torch's own RNG is
  left as it was;
- a model that cannot be had is a one-line error with the remedy; a saved one loads and is the same, frozen, in eval mode;
- a folder's model is known by its weights, so other weights in the same folder are another model.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from _gate import Gate
from _tiny import identity, refused, tiny
from vgrout.models import SIZES, decode_text, load_model, render_prompt, shipped_texts, stop_ids

gate = Gate(__doc__)


@gate.invariant("encoding and decoding return every text unchanged, and every token id decodes")
def _():
    tokenizer, source = tiny().tokenizer, random.Random(1)
    written = shipped_texts()
    odd = [" x  y\n\n\t", "naïve “quotes” 日本語 🙂\u0301e\u0301 \x01\x7f", "</think> a\r\n", " .,!? n't 's", ""]
    planes = [*range(1, 0xD800), *range(0xE000, 0x110000)]
    odd += ["".join(map(chr, source.sample(planes, 40))) for _ in range(200)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in written + odd]
    for text, row in zip(written + odd, ids):
        assert decode_text(tokenizer, row) == text, text
    assert len(tokenizer) == SIZES["tiny"].vocab == load_model("tiny").model.config.vocab_size
    everything = source.sample(range(len(tokenizer)), len(tokenizer))
    assert len(decode_text(tokenizer, everything)) > len(tokenizer) // 2
    ratio = sum(map(len, written)) / sum(map(len, ids[: len(written)]))
    assert ratio > 2, ratio
    return f"{len(ids)} texts, {ratio:.2f} characters a token on the shipped ones"


@gate.invariant("the chat form closes every turn and switches thinking off with an empty block")
def _():
    tokenizer = tiny().tokenizer
    text = tokenizer.decode(render_prompt(tokenizer, [("system", "S"), ("user", "U")]))
    turns = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert text == turns + "<think>\n\n</think>\n\n", text
    user = [{"role": "user", "content": "U"}]
    assert str(tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=False)).endswith("assistant\n")
    assert str(tokenizer.apply_chat_template(user, tokenize=False)).endswith("U<|im_end|>\n")
    assert stop_ids(tiny().model, tokenizer) == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert tokenizer.pad_token == "<|endoftext|>"
    return f"{len(text)} characters"


@gate.invariant("same seed, same weights; another seed, other weights; torch's RNG is left as it was")
def _():
    before = torch.random.get_rng_state()
    first, again, other = (identity(load_model("tiny", seed=seed)) for seed in (0, 0, 1))
    assert first == again and first[0] != other[0] and first[1] == other[1]
    assert torch.equal(before, torch.random.get_rng_state())
    revisions = {load_model("tiny", seed=seed).revision for seed in (0, 1)}
    assert len(revisions) == 2 and all(first[1][:12] in str(revision) for revision in revisions)
    return " ".join(first)


@gate.invariant("another process, with other threads and hash seed, makes the same weights and tokenizer", slow=True)
def _():
    code = "import _tiny as t; print(*t.identity(t.load_model('tiny', seed=0)))"
    env = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "2"}
    here = Path(__file__).parent
    run = subprocess.run([sys.executable, "-c", code], env=env, cwd=here, capture_output=True, text=True)
    assert tuple(run.stdout.split()) == identity(load_model("tiny", seed=0)), run.stdout + run.stderr
    return run.stdout.strip()


@gate.invariant("the benchmark sizes have the stated numbers of parameters")
def _():
    counts = {name: sum(p.numel() for p in load_model(name).model.parameters()) / 1e6 for name in ("tiny:a", "tiny:b")}
    assert {name: round(count, 1) for name, count in counts.items()} == {"tiny:a": 3.4, "tiny:b": 32.5}, counts
    return ", ".join(f"{name} {count:.2f}M" for name, count in counts.items())


@gate.invariant("a model that cannot be had is a one-line error with the remedy; a saved one loads and is the same")
def _():
    messages = {
        "download-model": refused(lambda: load_model("no/such-model")),
        "tiny:a": refused(lambda: load_model("tiny:z")),
        "fp32, bf16": refused(lambda: load_model("tiny", dtype="float8")),
        "cpu, cuda": refused(lambda: load_model("tiny", device="tpu")),
        "CUDA devices": refused(lambda: load_model("tiny", device=f"cuda:{torch.cuda.device_count()}")),
        "leave revision out": refused(lambda: load_model("tiny", revision="main")),
    }
    for remedy, message in messages.items():
        assert remedy in message, message
    with tempfile.TemporaryDirectory() as folder:
        refused(lambda: load_model(folder))
        tiny().model.save_pretrained(folder)
        tiny().tokenizer.save_pretrained(folder)
        loaded, half = load_model(folder), load_model(folder, dtype="bf16")
        load_model("tiny", seed=1).model.save_pretrained(folder)
        replaced = load_model(folder).revision
        (Path(folder) / "chat_template.jinja").unlink()
        assert "chat template" in refused(lambda: load_model(folder))
    assert identity(loaded) == identity(tiny()) and str(loaded.revision).startswith("weights-")
    assert replaced != loaded.revision, "a folder with other weights passes for the same model"
    assert half.model.dtype == torch.bfloat16 and loaded.model.config._attn_implementation == "sdpa"
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    frequencies = {n: b for n, b in loaded.model.named_buffers() if "inv_freq" in n}
    random = load_model("tiny", dtype="bf16").model
    for model in (half.model, random):
        own = dict(model.named_buffers())
        assert frequencies and all(torch.equal(own[n], b) for n, b in frequencies.items()), (
            "bf16 rounds the frequencies"
        )
    assert {p.dtype for p in random.parameters()} == {torch.bfloat16}
    return f"{len(messages) + 2} refused; rotary frequencies stay fp32 beside bf16 weights"


if __name__ == "__main__":
    gate.main()
