"""Which tensors an export consists of, which blocks they depend on, and how much of the trained change they keep.

    delta = B A - B0 A0 = [B - B0, B0] [A ; A - A0]          since (B - B0) A + B0 (A - A0) = B A - B0 A0

The LoRA form has one such pair of products per block that acts in the view: rank 2r for `deploy`, 4r for `full`. Its
small factors B - B0 and A - A0 keep their relative precision in bf16, where copies of A and B would drown a young change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.adapter.base import Adapter
from vgrout.adapter.basis import fingerprint
from vgrout.adapter.linear import ACTS, AdaptedLinear
from vgrout.adapter.lora2r import Lora2rLinear
from vgrout.adapter.route import BLOCKS
from vgrout.types import View

Form = Literal["peft", "merged"]
PREFIX = "base_model.model."
"""What peft puts before a module's name in its files."""
_SCRAMBLE_SEED = 1


@torch.no_grad()
def lora_factors(module: Lora2rLinear, view: View) -> tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]:
    """(A, B) of the difference form, fp32, with B A = delta(view); k is 2r for each block that acts in the view."""
    A, B = [], []
    for block in ACTS[view]:
        k = module.block_columns(block)
        A += [module.A[k], module.A[k] - module.A0[k]]
        B += [module.B[:, k] - module.B0[:, k], module.B0[:, k]]
    return torch.cat(A), torch.cat(B, dim=1)


@torch.no_grad()
def module_tensors(module: AdaptedLinear, view: View, form: Form, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the export holds of one module, on the CPU: two factors under peft's names, or the merged weight."""
    if form == "peft":
        assert isinstance(module, Lora2rLinear), "only lora2r has factors of low rank"
        A, B = lora_factors(module, view)
        found = {f"{PREFIX}{module.name}.lora_A.weight": A, f"{PREFIX}{module.name}.lora_B.weight": B}
    else:
        pristine = module.pristine.to(module.weight.device)
        found = {f"{module.name}.weight": pristine.float() + module.delta(view)}
    return {name: tensor.to("cpu", dtype).contiguous() for name, tensor in found.items()}


def exported(adapter: Adapter, view: View, form: Form, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the export by name, one module after the other, so that merged weights are never held together."""
    for module in adapter.modules:
        yield from module_tensors(module, view, form, dtype).items()


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bytes, whatever the order of the tensors."""
    lines = sorted(f"{name} {fingerprint(tensor)}" for name, tensor in tensors)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def scrambled(adapter: Adapter, block: str) -> Generator[None]:
    """The block holds random numbers inside; afterwards it is, bit for bit, what it was."""
    generator = torch.Generator().manual_seed(_SCRAMBLE_SEED)
    before = [(t.value, t.value.detach().clone()) for _, t in adapter.trainables() if block in t.parts]
    try:
        with torch.no_grad():
            for _, t in adapter.trainables():
                if block in t.parts:
                    part = t.value[t.parts[block]]
                    part.copy_(torch.randn(part.shape, generator=generator))
        yield
    finally:
        with torch.no_grad():
            for value, saved in before:
                value.copy_(saved)


def digests(adapter: Adapter, view: View, form: Form, dtype: torch.dtype) -> dict[str, str]:
    """The export's digest as the adapter stands (key ""), and with other numbers in each of its blocks (their names)."""
    found = {"": digest(exported(adapter, view, form, dtype))}
    for block in BLOCKS:
        with scrambled(adapter, block):
            found[block] = digest(exported(adapter, view, form, dtype))
    return found


@torch.no_grad()
def change_error(adapter: Adapter, view: View, form: Form, dtype: torch.dtype) -> float | None:
    """Frobenius norm of (stored change - trained change) over that of the trained change, all modules together.

    None where the view changes nothing.
    """
    off = size = 0.0
    for module in adapter.modules:
        stored = [t.to(module.weight.device).float() for t in module_tensors(module, view, form, dtype).values()]
        delta = module.delta(view)
        kept = stored[1] @ stored[0] if form == "peft" else stored[0] - module.pristine.to(delta.device).float()
        off += float((kept - delta).double().square().sum())
        size += float(delta.double().square().sum())
    return (off / size) ** 0.5 if size else None
