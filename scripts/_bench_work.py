"""The work of the step benchmark, the same for every system.

P prompts of exactly 200 tokens, G rollouts each, a fixed number of forced new tokens (no token ends a completion), a varied
reward that takes no time, a LoRA of total rank 32 on every projection, the KL to the initial policy on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench_floor import Settings
from vgrout.directions.direction import Direction
from vgrout.models import load_model, render_prompt, shipped_texts
from vgrout.types import Prompt, UserError

SHAPES = {"tiny": "tiny", "a": "tiny:a", "b": "tiny:b"}
"""Size on the command line, and the model of random weights that it names; `tiny` is for trying the script itself."""
RANK = 16
"""Of one block; the adapter's total rank, and the floor's and TRL's, is twice this."""


@dataclass(frozen=True)
class Work:
    """What every system is given: its own copy of `model` is made from it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: tuple[Prompt, ...]
    settings: Settings
    directions: dict[object, tuple[Direction, float]] = field(default_factory=dict)
    """By adapter and parts: the direction of the 24 core pairs at the init, and the seconds that extracting it took. Every
    system holds the same model, so that one extraction serves all."""

    def rewards(self, step: int) -> Float[Tensor, "P G"]:
        """Varied within every group, so that no group is without spread and every row is trained."""
        P, G = len(self.prompts), self.settings.group_size
        return 0.5 * ((torch.arange(G) + torch.arange(P)[:, None] + step) % G).float()

    def labels(self, step: int) -> Bool[Tensor, "P G"]:
        """Random labels, about half of the rows."""
        generator = torch.Generator().manual_seed(step)
        return torch.rand(len(self.prompts), self.settings.group_size, generator=generator) < 0.5


def make_work(
    size: str, *, prompts: int, prompt_tokens: int, settings: Settings, dtype: str, device: str, seed: int = 0
) -> Work:
    """The random model of `size` (a key of SHAPES) and distinct prompts of exactly `prompt_tokens` tokens of shipped text."""
    loaded = load_model(SHAPES[size], dtype=dtype, device=device, seed=seed)
    made = tuple(_prompt(loaded.tokenizer, index, prompt_tokens) for index in range(prompts))
    assert len({p.messages for p in made}) == prompts
    return Work(loaded.model, loaded.tokenizer, made, settings)


def _prompt(tokenizer: PreTrainedTokenizerBase, index: int, length: int) -> Prompt:
    """A window of the shipped text whose rendered form has the wanted length."""
    text = "\n".join(shipped_texts())
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    for start in range(index * length, len(ids) - length):
        for end in range(start + length, start + length // 2, -1):
            messages = (("user", str(tokenizer.decode(ids[start:end]))),)
            rendered = len(render_prompt(tokenizer, messages))
            if rendered == length:
                return Prompt(f"text{index}", "gt_only", "train", "", messages)
            if rendered < length:
                break
    raise UserError(
        f"prompt {index}: the shipped text of {len(ids)} tokens has no prompt of exactly {length} left; "
        "lower --prompts, or choose other --prompt-tokens"
    )
