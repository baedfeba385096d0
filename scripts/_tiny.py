"""What the gates of models and samplers share: a tiny model with uneven distributions, prompts, refusals."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import cache

from transformers import PreTrainedModel

from vgrout.models import SIZES, LoadedModel, load_model, random_qwen3, tokenizer_fingerprint
from vgrout.models.tiny import Size
from vgrout.types import Prompt, UserError


@cache
def tiny() -> LoadedModel:
    """A tiny model that prefers some tokens, so that a wrong one shows. (With tied embeddings, as `tiny` itself has
    them, a random model that is made more certain only repeats its last token.)"""
    loaded = load_model("tiny", seed=3)
    size = SIZES["tiny"]
    untied = Size(
        size.hidden, size.layers, size.heads, size.kv_heads, size.intermediate, size.vocab, tie_embeddings=False
    )
    model = random_qwen3(untied, loaded.tokenizer, seed=3).eval().requires_grad_(False)
    model.get_submodule("model.norm").weight.data.mul_(12.0)
    return LoadedModel(model, loaded.tokenizer, "tiny-uneven", None, "fp32")


def random_prompts(lengths: list[int], copies: int = 1) -> list[list[int]]:
    """Token ids of random prompts, each `copies` times in a row."""
    source = random.Random(5)
    prompts = [[source.randrange(10, 500) for _ in range(length)] for length in lengths]
    return [ids for ids in prompts for _ in range(copies)]


def stops(model: PreTrainedModel, every: int = 16) -> frozenset[int]:
    """Enough stop tokens that rows end at many different lengths."""
    return frozenset(range(3, model.config.get_text_config().vocab_size, every))


def prompt(problem: str = "p", mode: str = "sentinel", text: str = "Add two numbers.") -> Prompt:
    """A prompt as the environment hands it over."""
    turns = (("system", "You write Python."), ("user", text))
    return Prompt(problem_id=problem, mode=mode, markers="train", marker="m", messages=turns)


def identity(loaded: LoadedModel) -> tuple[str, str]:
    """Hashes of the weights and of the tokenizer."""
    weights = hashlib.sha256(b"".join(p.float().numpy().tobytes() for p in loaded.model.state_dict().values()))
    return weights.hexdigest()[:16], tokenizer_fingerprint(loaded.tokenizer)[:16]


def refused(action: Callable[[], object]) -> str:
    """The one-line message of the UserError that `action` must raise."""
    try:
        action()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) > 20, error
        return str(error)
    raise AssertionError("accepted what it must refuse")
