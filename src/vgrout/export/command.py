"""`vgrout export RUN`: a checkpoint of a run as a folder for other programs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vgrout.adapter.base import Adapter
from vgrout.adapter.checkpoint import METADATA, load_checkpoint
from vgrout.adapter.linear import ACTS
from vgrout.config import RunConfig
from vgrout.evals import CONTROLS
from vgrout.export.card import Source, card
from vgrout.export.check import Proof, check_folder, in_fp32
from vgrout.export.tensors import Form
from vgrout.export.write import made_here, staged, write_merged, write_peft, writing
from vgrout.inputs import load_policy
from vgrout.models import DTYPES, LoadedModel, load_model
from vgrout.run.console import say
from vgrout.run.disk import disk_errors, dumps, write_atomic
from vgrout.run.folder import RunFolder
from vgrout.run.provenance import code_revision
from vgrout.session import identity
from vgrout.stored import stored_config
from vgrout.types import UserError, View

CARD, RECORD = "README.md", "export.json"
VIEWS: tuple[View, ...] = ("deploy", "full")


def export_run(
    folder: Path, view: str, form: Form, out: Path, checkpoint: Path | None = None, dtype: str | None = None
) -> Path:
    """Writes `view` of a run's checkpoint (default: the last numbered one) to the new folder `out`, and returns it.

    `dtype` (fp32 or bf16) is that of the exported tensors: by default fp32 for peft and the model's for merged. The
    folder appears only after it has been loaded again and held against the adapter. Raises `UserError` for whatever is
    missing, unknown, in the way, or not as it should be.
    """
    chosen = _view(view)
    run = RunFolder.open(folder)
    config = stored_config(run)
    if form == "peft" and config.adapter.kind != "lora2r":
        raise UserError(
            f"{folder}: its adapter {config.adapter.kind} changes weights in full rank, which no LoRA holds; use --to merged"
        )
    path = _checkpoint(run, checkpoint)
    dtype = dtype or ("fp32" if form == "peft" else config.model.dtype)
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    with staged(out) as staging:
        loaded, policy = load_policy(config)
        step = load_checkpoint(path, policy.adapter, identity(loaded), intervention=config.intervention)
        _require_settings(path, config)
        in_fp32(loaded, policy.adapter)
        _write(staging, policy.adapter, config, loaded, chosen, form, dtype)
        proof = check_folder(staging, policy.adapter, loaded, chosen, form, dtype)
        sha256 = _sha256(path) if "quarantine" in ACTS[chosen] else None
        source = Source(run, config, chosen, form, dtype, path, sha256, step, loaded.revision)
        record = _record(source, proof, loaded)
        with writing(out):
            write_atomic(staging / RECORD, dumps(record, RECORD) + "\n")
            write_atomic(staging / CARD, card(source, proof, record["export"], out.name))
    for line in proof.lines():
        say(line)
    say(str(out))
    return out


def _view(view: str) -> View:
    if view == "base":
        raise UserError("--view base is the model without its adapter, which needs no export; choose deploy or full")
    if view in CONTROLS:
        raise UserError(f"--view {view} is a control of evaluations and no model to ship; choose deploy or full")
    for known in VIEWS:
        if view == known:
            return known
    raise UserError(f"--view {view!r} is unknown: choose deploy (quarantine-ablated) or full (both blocks)")


def _checkpoint(run: RunFolder, given: Path | None) -> Path:
    """The checkpoint file to export."""
    if given is not None:
        return given
    stored = run.checkpoints()
    if not stored:
        state = run.status()["state"]
        raise UserError(
            f"{run.path} has no checkpoint (its status is {state}); let it train, or name --checkpoint FILE"
        )
    return stored[-1]


def _require_settings(path: Path, config: RunConfig[Any]) -> None:
    """The card describes the checkpoint by the run's settings, so these must be those that it was trained with."""
    with safe_open(path, framework="pt") as handle:
        trained = json.loads(handle.metadata()[METADATA])["config"]
    ours = json.loads(json.dumps(config.to_dict()))
    # Where a run lies and what it is called may change afterwards.
    differing = [key for key in sorted(trained.keys() | ours) if trained.get(key) != ours.get(key)]
    if differing := [key for key in differing if key not in ("out", "name")]:
        key = differing[0]
        raise UserError(
            f"checkpoint {path}: another run trained it ({key} is {trained.get(key)}, this run has {ours.get(key)}); export "
            "it from its own run folder"
        )


def _write(
    staging: Path,
    adapter: Adapter,
    config: RunConfig[Any],
    loaded: LoadedModel,
    view: View,
    form: Form,
    dtype: str,
) -> None:
    plain = None
    if form == "merged" or made_here(loaded.name):
        m = config.model
        plain = load_model(m.name, dtype=m.dtype, device=m.device, seed=m.seed, revision=m.revision)
        if plain.revision != loaded.revision:
            raise UserError(f"model {m.name}: changed from {loaded.revision} to {plain.revision} meanwhile; try again")
    if form == "peft":
        write_peft(staging, adapter, view, DTYPES[dtype], loaded, plain)
    else:
        assert plain is not None
        write_merged(staging, adapter, view, DTYPES[dtype], plain)


def _record(source: Source, proof: Proof, loaded: LoadedModel) -> dict[str, Any]:
    """What export.json holds: the same facts as the card, for programs."""
    config = source.config
    return {
        "schema": "vgrout-export-1",
        "run": source.run.path.resolve().name,
        "intervention": config.intervention,
        "upper_bound": config.upper_bound,
        "oracle_tuned_on": config.oracle_tuned_on,
        "model": loaded.name,
        "revision": loaded.revision,
        "model_dtype": loaded.dtype,
        "adapter": config.adapter.kind,
        "view": source.view,
        "form": source.form,
        "dtype": source.dtype,
        "checkpoint": {"file": source.checkpoint.name, "sha256": source.sha256, "step": source.step},
        "proof": asdict(proof),
        "export": {
            "code": code_revision(Path(__file__).parents[1] / "__init__.py"),
            "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft", "safetensors")},
        },
    }


def _sha256(path: Path) -> str:
    with disk_errors(path, "read"), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
