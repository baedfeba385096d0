"""Direction files: safetensors with everything that decides what the numbers mean, checked before they are used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vgrout.directions.config import ExtractionConfig
from vgrout.directions.direction import GATE_VIEWS, Direction
from vgrout.directions.placebo import Source
from vgrout.directions.subspace import Axes, Subspace
from vgrout.run.disk import write_atomic
from vgrout.types import UserError

FORMAT = "vgrout-direction-1"
METADATA = "vgrout"
_DTYPES = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}
_DECIDING = ("directions", "adapter", "models", "policy.py", "grpo.py", "direction_inputs.py", "labelled.py")
"""Sources of the package that decide what an extraction gives."""


def describe(
    *,
    model: Mapping[str, Any],
    adapter: Mapping[str, Any],
    sizes: Mapping[str, int],
    pairs: str,
    source: Source,
    config: ExtractionConfig,
    temperature: float,
    max_new: int,
) -> dict[str, Any]:
    """What a direction must share with the run that uses it; plain data.

    `model` names id, revision, dtype and tokenizer hash; `adapter` is `Adapter.identity()` and whether its base is
    folded; `sizes` the number of erase coordinates of each module; `pairs` the content hash.
    """
    return {
        "format": FORMAT,
        **model,
        **adapter,
        "sizes": dict(sizes),
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "pairs": pairs,
        "direction": str(source),
        "top_k": config.top_k,
        "token_norm": config.token_norm,
        "max_new": max_new if config.token_norm == "fixed" else None,
        "temperature": temperature,
        "code": code_hash(),
    }


@cache
def code_hash() -> str:
    """sha256 over the sources that decide an extraction: a revision that also tells an edited checkout apart."""
    root = Path(str(resources.files("vgrout")))
    files = sorted(
        f for name in _DECIDING for f in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\x00".encode() + file.read_bytes() + b"\x00")
    return digest.hexdigest()[:16]


def default_path(folder: Path, expected: Mapping[str, Any], pairs_name: str) -> Path:
    """`MODEL_ADAPTER_PAIRS_DIRECTION_kTOPK_HASH.safetensors`; the hash is of all that must agree."""
    slug = lambda text: "".join(c if c.isalnum() or c in "-." else "-" for c in str(text)).strip("-")  # noqa: E731
    key = hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()[:12]
    names = (expected["model"], expected["adapter"], pairs_name, expected["direction"])
    return folder / f"{'_'.join(slug(n)[-40:] for n in names)}_k{expected['top_k']}_{key}.safetensors"


def save_direction(path: Path, direction: Direction, expected: Mapping[str, Any]) -> None:
    """Writes the file; its name appears only when it is complete."""
    tensors: dict[str, Tensor] = {}
    for name, axes in direction.hack.axes.items():
        tensors[f"v_hack/{name}"], tensors[f"_sv/{name}"] = axes.V, axes.S
    for view in GATE_VIEWS:
        tensors |= {f"v_grad/{view}/{name}": v for name, v in direction.grad.get(view, {}).items()}
        tensors |= {f"probes/{view}/{name}": g for name, g in direction.probes.get(view, {}).items()}
    tensors |= {f"v_act/{name}": v for name, v in direction.act.items()}
    metadata = {METADATA: json.dumps({**expected, "ties": direction.hack.ties}, sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save({name: t.contiguous() for name, t in tensors.items()}, metadata))


def load_direction(path: Path, expected: Mapping[str, Any]) -> Direction:
    """The direction of a file. Raises `UserError` naming the first thing in which it differs from `expected`."""
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = json.loads((handle.metadata() or {}).get(METADATA, "{}"))
            if not isinstance(metadata, dict) or not isinstance(metadata.get("ties", 0), int):
                raise ValueError("its metadata is no object of ours")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"direction {path}: cannot be read ({error}); make it with `vgrout direction extract`"
        ) from error
    _require_same(path, metadata, expected)
    _require_whole(path, tensors, expected)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.rpartition("/")
        parts.setdefault(kind, {})[name] = value
    for name, V in parts["v_hack"].items():
        _require_axes(path, name, V, parts["_sv"][name], int(expected["sizes"][name]), expected["dtype"])
    axes = {name: Axes(V, parts["_sv"][name]) for name, V in parts["v_hack"].items()}
    return Direction(
        Subspace(axes, ties=int(metadata.get("ties", 0))),
        {view: parts[f"v_grad/{view}"] for view in GATE_VIEWS},
        parts["v_act"],
        {view: parts[f"probes/{view}"] for view in GATE_VIEWS},
    )


def _require_same(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if found.get("format") != FORMAT:
        raise UserError(
            f"direction {path}: format {found.get('format')!r}, expected {FORMAT!r}; it is no direction file"
        )
    for key, wanted in expected.items():
        got = found.get(key)
        if got == wanted:
            continue
        if isinstance(got, dict) and isinstance(wanted, dict):
            names = sorted(n for n in got.keys() | wanted.keys() if got.get(n) != wanted.get(n))
            got, wanted = ({n: side.get(n, "absent") for n in names[:3]} for side in (got, wanted))
        raise UserError(
            f"direction {path}: its {key} is {_short(got)}, this run has {_short(wanted)}; extract one for this run "
            "(leave out --extraction.artefact)"
        )


def _require_whole(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Any]) -> None:
    """Exactly the modules of the adapter, in every part."""
    modules = set(expected["module_ranks"])
    kinds = ("v_hack", "_sv", *(f"{part}/{view}" for part in ("v_grad", "probes") for view in GATE_VIEWS), "v_act")
    wanted = {f"{kind}/{name}" for kind in kinds for name in modules}
    if tensors.keys() != wanted:
        missing, extra = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
        raise UserError(f"direction {path}: it lacks {missing[:3]} and has {extra[:3]} besides; extract it anew")
    for key, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise UserError(f"direction {path}: {key} is not finite; extract it anew")


def _require_axes(path: Path, name: str, V: Tensor, S: Tensor, size: int, dtype: str) -> None:
    """Orthonormal axes of the module's size in the model's type, with their singular values, largest first."""
    k = len(V) if V.ndim == 2 else -1
    whole = k >= 0 and V.shape[1] == size and S.shape == (k,)
    if not whole or str(V.dtype) != _DTYPES[dtype] or not S.dtype.is_floating_point:
        raise UserError(
            f"direction {path}: module {name} has axes {list(V.shape)} of {V.dtype} with singular values {list(S.shape)}, "
            f"expected [k, {size}] of {_DTYPES[dtype]} with k values; extract it anew"
        )
    off = float((V.float() @ V.float().T - torch.eye(k)).abs().max()) if k else 0.0
    if off > 0.05 or bool((S < 0).any()) or bool((S.diff() > 0).any()):
        raise UserError(
            f"direction {path}: the axes of {name} are not orthonormal ones with falling singular values; extract it anew"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
