"""What an export must pass before its folder appears: it is independent of the quarantine, and it is the view.

Both are checked on the files. Logits are compared in fp32 arithmetic, whatever the run computed in: bf16 activations
would differ between two orders of the same operations by far more than a wrong export might.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vgrout.adapter.base import Adapter
from vgrout.adapter.linear import ACTS
from vgrout.adapter.route import BLOCKS
from vgrout.export.tensors import Form, change_error, digest, digests
from vgrout.export.write import BASE, WEIGHTS, from_hub, made_here
from vgrout.models import DTYPES, LoadedModel, render_prompt
from vgrout.types import UserError, View

PROMPTS = (
    "Write a Python function that returns the sum of two integers.",
    "Given a list of words, return those that are palindromes, in their original order.",
    "What is the time complexity of binary search? Answer in one sentence.",
)
EXACT, OF_CHANGE, OF_LOGITS = 1e-5, 0.02, 0.05
"""Accepted differences of logits. EXACT: fp32 tensors, relative to the largest logit (or to 1, if that is larger) and, in
models of more than DEEP layers, to the root of their depth, as rounding adds up like a random walk. Beside it OF_CHANGE:
factors stored in bf16, relative to the change that the view makes; OF_LOGITS: merged bf16 weights, to the largest logit."""
DEEP = 4


@dataclass(frozen=True)
class Proof:
    """The figures of an export's checks; all differences are the largest over every token and entry of the vocabulary."""

    view: View
    blocks: tuple[str, ...]
    """Blocks of the adapter whose numbers the exported tensors depend on."""
    tensors: int
    sha256: str
    """Over the exported tensors, by name, dtype, shape and bytes."""
    error: float
    """Between the logits of the reloaded folder and those of the view."""
    tolerance: float
    scale: float
    """The largest logit of the view."""
    change: float
    """Between the logits of the view and those of the base."""
    change_error: float | None
    """Of the stored weights' change against the trained one, relative; None where the view changes nothing."""
    prompts: int
    tokens: int
    buffers: float
    """Largest relative difference of the run's buffers (rotary frequencies) from those of the exported model."""

    def lines(self) -> list[str]:
        """The figures in sentences."""
        n, whole = self.tensors, len(self.blocks) == len(BLOCKS)
        absent = f"The {n} exported tensors, read back from disk, equal those computed with "
        if whole:
            absent = (
                f"The {n} exported tensors depend on both blocks: the quarantine is in this export, as the run left it"
            )
        else:
            absent += "random numbers in the quarantine, byte for byte: the quarantine is absent from this export"
        sentences = [
            f"{absent} (sha256 {self.sha256}).",
            f"Loaded from disk with plain libraries, the logits of {self.prompts} fixed prompts ({self.tokens} tokens) differ "
            f"from those of the adapter's {self.view} view by at most {self.error:.1e} (allowed: {self.tolerance:.1e}; "
            f"largest logit {self.scale:.1f}; the view differs from the base model by up to {self.change:.1e}), "
            "in fp32 arithmetic.",
        ]
        if self.change_error is None:
            sentences.append("The view changes no weight: this checkpoint is the base model.")
        else:
            sentences.append(f"The stored weights keep the trained change within {self.change_error:.1e} of its size.")
        if self.buffers:
            sentences.append(
                f"The run's rotary frequencies were rounded with its weights and differ from the exported model's by up to "
                f"{self.buffers:.1e} of their size; the comparison uses the exported model's, so the run's own outputs "
                "differ from this export's by what that rounding does."
            )
        return sentences


def check_blocks(adapter: Adapter, view: View, form: Form, dtype: torch.dtype) -> dict[str, str]:
    """Digests as `digests` gives them. `UserError` unless the export depends on the view's blocks and on no other."""
    found = digests(adapter, view, form, dtype)
    for block in BLOCKS:
        depends = found[block] != found[""]
        if depends != (block in ACTS[view]):
            says = "depends on" if depends else "does not contain"
            raise UserError(f"export of the {view} view refused: it {says} the {block} block; nothing was written")
    return found


def check_files(folder: Path, reloaded: nn.Module, expected: str, adapter: Adapter, form: Form) -> int:
    """The number of exported tensors, which as they lie on disk must have the digest `expected`; `UserError` otherwise."""
    if form == "peft":
        tensors = load_file(folder / WEIGHTS)
    else:
        names = [f"{module.name}.weight" for module in adapter.modules]
        tensors = {name: reloaded.get_parameter(name).detach() for name in names}
    if digest(tensors.items()) != expected:
        raise UserError(
            "export refused: the tensors on disk are not those of the view without its other blocks; "
            "nothing was written; check the disk"
        )
    return len(tensors)


def reload(folder: Path, form: Form, loaded: LoadedModel) -> tuple[PreTrainedModel, PreTrainedModel | PeftModel]:
    """(the model without a LoRA around it, the whole), from the files alone, by transformers and peft, in stored dtypes."""
    device = loaded.model.device
    if form == "merged":
        model = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
        model = model.to(device).eval()
        return model, model
    source = str(folder / BASE) if made_here(loaded.name) else loaded.name
    revision = loaded.revision if from_hub(loaded.name) else None
    model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=DTYPES[loaded.dtype])
    model = cast(PreTrainedModel, model).to(device)
    try:
        return model, PeftModel.from_pretrained(model, str(folder)).eval()
    except (RuntimeError, ValueError) as error:  # other shapes or modules than the files describe
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"export refused: the LoRA cannot be loaded by peft ({reason}); nothing was written") from error


def in_fp32(loaded: LoadedModel, adapter: Adapter) -> None:
    """Puts model and adapter into fp32 in place: the run's frozen weights, rounded as the run had them, exactly."""
    loaded.model.float()
    with adapter.merged("base"):
        pass  # leaving it makes the training form anew, now in fp32


@torch.no_grad()
def logits(model: nn.Module, prompts: Sequence[Sequence[int]]) -> list[Float[Tensor, "L V"]]:
    """Logits of each prompt by itself, on the CPU."""
    device = next(model.parameters()).device
    batches = [torch.tensor([list(ids)], device=device) for ids in prompts]
    return [model(input_ids=ids, use_cache=False).logits[0].float().cpu() for ids in batches]


def largest(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Largest absolute difference; NaN where there is one."""
    return float(torch.stack([(x - y).abs().max() for x, y in zip(a, b, strict=True)]).max())


def tolerance(form: Form, dtype: str, layers: int, scale: float, change: float) -> float:
    """Largest difference of logits that is accepted."""
    exact = EXACT * max(1.0, scale) * max(1.0, layers / DEEP) ** 0.5
    if dtype == "fp32":
        return exact
    return exact + (OF_CHANGE * change if form == "peft" else OF_LOGITS * scale)


@torch.no_grad()
def take_buffers(model: nn.Module, plain: nn.Module) -> float:
    """Gives the model the plain one's buffers, which no checkpoint holds; the largest relative difference that they had."""
    worst = 0.0
    for name, buffer in plain.named_buffers():
        if buffer.is_floating_point():
            own = model.get_buffer(name)
            gap = (own.float() - buffer.float()).abs() / buffer.float().abs().clamp_min(1e-30)
            worst = max(worst, float(gap.max()) if gap.numel() else 0.0)
            own.copy_(buffer)
    return worst


def check_folder(folder: Path, adapter: Adapter, loaded: LoadedModel, view: View, form: Form, dtype: str) -> Proof:
    """Loads the folder with plain libraries and holds it against the adapter; model and adapter must be in fp32.

    Raises `UserError` where the export depends on a block that the view resets, or differs from the view.
    """
    found = check_blocks(adapter, view, form, DTYPES[dtype])
    absent = [found[block] for block in BLOCKS if block not in ACTS[view]]
    plain, whole = reload(folder, form, loaded)
    tensors = check_files(folder, plain, (absent or [found[""]])[0], adapter, form)
    prompts = _prompts(folder, loaded.tokenizer)
    buffers = take_buffers(loaded.model, plain.float())
    got = logits(whole.float(), prompts)
    with adapter.view(view):
        wanted = logits(loaded.model, prompts)
    with adapter.view("base"):
        base = logits(loaded.model, prompts)
    scale, change = max(float(x.abs().max()) for x in wanted), largest(wanted, base)
    layers = int(loaded.model.config.get_text_config().num_hidden_layers)
    error, allowed = largest(got, wanted), tolerance(form, dtype, layers, scale, change)
    if not error <= allowed:  # NaN too
        raise UserError(
            f"export of the {view} view refused: loaded from disk, its logits differ from the view's by {error:.1e}, allowed "
            f"are {allowed:.1e}; nothing was written" + ("; try --dtype fp32" if dtype != "fp32" else "")
        )
    return Proof(
        view=view,
        blocks=ACTS[view],
        tensors=tensors,
        sha256=found[""],
        error=error,
        tolerance=allowed,
        scale=scale,
        change=change,
        change_error=change_error(adapter, view, form, DTYPES[dtype]),
        prompts=len(prompts),
        tokens=sum(map(len, prompts)),
        buffers=buffers,
    )


def _prompts(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the fixed prompts, which the exported tokenizer must give as the run's does."""
    stored = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder))
    found = []
    for text in PROMPTS:
        ours, theirs = (render_prompt(t, [("user", text)]) for t in (tokenizer, stored))
        if ours != theirs:
            raise UserError(f"export refused: its tokenizer, loaded from disk, reads {text!r} as other tokens")
        found.append(ours)
    return found
