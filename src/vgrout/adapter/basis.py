"""Singular bases of weights, W = U diag(S) Vh, with a disk cache keyed by the weights themselves.

The decomposition is computed in fp32 whatever the weight's dtype (NumPy and LAPACK have no bf16) and stored in the
weight's dtype, which is the one it is used in. Signs are canonical, so that the same weight always gives the same basis.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vgrout.types import UserError

CACHE_VARIABLE = "VGROUT_CACHE"
"""Names the folder of caches; without it `$XDG_CACHE_HOME/vgrout` or `~/.cache/vgrout`."""
_FORMAT = "vgrout-basis-1"


@dataclass(frozen=True)
class Basis:
    """The reduced singular value decomposition of one weight, m = min(d_in, d_out)."""

    U: Float[Tensor, "o m"]
    S: Float[Tensor, " m"]
    Vh: Float[Tensor, "m i"]


def decompose(weight: Float[Tensor, "o i"]) -> Basis:
    """U and Vh in the weight's dtype, S in fp32 (fp64 for an fp64 weight).

    Column j of U and row j of Vh have the sign that makes the entry of U's column with the largest size positive.
    """
    work = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    U, S, Vh = torch.linalg.svd(work, full_matrices=False)
    largest = U.abs().argmax(dim=0, keepdim=True)
    sign = torch.where(U.gather(0, largest) < 0, -1.0, 1.0).to(U.dtype)
    U, Vh = U * sign, Vh * sign.T
    return Basis(U.to(weight.dtype).contiguous(), S, Vh.to(weight.dtype).contiguous())


def cached(weight: Float[Tensor, "o i"], folder: Path) -> Basis:
    """`decompose(weight)`, from the folder where it is there. Raises `UserError` for a damaged file."""
    path = folder / f"{weight_key(weight)}.safetensors"
    if path.exists():
        return _read(path, weight)
    basis = decompose(weight)
    _write(path, basis)
    return basis


def cache_folder() -> Path:
    """Where decompositions are kept."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named) / "svd"
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vgrout" / "svd"


def weight_key(weight: Float[Tensor, "o i"]) -> str:
    """sha256 of dtype, shape and bytes: a changed weight cannot meet another's decomposition."""
    digest = hashlib.sha256(f"{_FORMAT} {weight.dtype} {tuple(weight.shape)}".encode())
    digest.update(_bytes(weight))
    return digest.hexdigest()


def fingerprint(*tensors: Tensor) -> str:
    """sha256 over the bytes of tensors, with their dtypes and shapes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _read(path: Path, weight: Tensor) -> Basis:
    try:
        with safe_open(path, framework="pt", device=str(weight.device)) as handle:
            basis = Basis(handle.get_tensor("U"), handle.get_tensor("S"), handle.get_tensor("Vh"))
    except (SafetensorError, OSError) as error:
        raise UserError(f"singular basis {path}: cannot be read ({error}); delete the file, it is a cache") from error
    d_out, d_in = weight.shape
    m = min(d_out, d_in)
    shapes = tuple(basis.U.shape), tuple(basis.S.shape), tuple(basis.Vh.shape)
    if shapes != ((d_out, m), (m,), (m, d_in)) or {basis.U.dtype, basis.Vh.dtype} != {weight.dtype}:
        raise UserError(
            f"singular basis {path}: holds {shapes} for a weight {[d_out, d_in]}; delete the file, it is a cache"
        )
    return basis


def _write(path: Path, basis: Basis) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {"U": basis.U.cpu(), "S": basis.S.cpu(), "Vh": basis.Vh.cpu()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, temporary)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the singular basis {path}: {error}; name a folder with room for it in {CACHE_VARIABLE}"
        ) from error
