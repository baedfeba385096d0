"""Runs of `erase`, from the command's own parts to the metrics file.

- on each adapter: cout is 0, teacher columns are filled, the direction is renewed on time
- a run that finds the direction file goes exactly as the one that wrote it; a file of another run is refused
- a run with a named file goes the same way, and its folder is read again; everything that changes a direction changes its
  identity
- in bf16 both adapters train along axes that are stored in bf16
- a placebo gives another run
- `none` measures what `erase` measures, and is the same run with and without being measured
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from _gate import Gate, refusal
from vgrout.config import RunConfig, from_dict
from vgrout.direction_inputs import chosen_pairs, identity_of
from vgrout.directions.pairs import Pair
from vgrout.inputs import load_policy
from vgrout.presets import preset
from vgrout.run.folder import RunFolder
from vgrout.train import train

gate = Gate(__doc__)
SCRATCH = tempfile.TemporaryDirectory(prefix="vgrout-verify-erase-")
Row = dict[str, Any]


@functools.cache
def run(
    kind: str, intervention: str = "erase", measure: bool = True, artefact: Path | None = None, **changes: Any
) -> list[Row]:
    """The metrics of a small run, without its timings."""
    config = preset("smoke", intervention)
    config = dataclasses.replace(
        config,
        steps=3,
        adapter=dataclasses.replace(config.adapter, kind=kind),
        extraction=dataclasses.replace(config.extraction, measure=measure, artefact=artefact),
        pairs="core#run_tests/returns,core#hardcode/",
        eval=dataclasses.replace(config.eval, problems=2, views=("deploy",)),
        out=Path(SCRATCH.name) / kind,
        **changes,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        rows = RunFolder.open(train(config)).metrics()
    return [{k: v for k, v in row.values.items() if not k.startswith("seconds")} for row in rows]


def comparable(row: Row) -> Row:
    """What a measurement along the direction does not add, but for the sampler's gap, which rounding makes."""
    left_out = ("cin", "cout", "frac_", "direction", "sampler_gap")
    return {k: v for k, v in row.items() if not k.startswith(left_out)}


def check(kind: str) -> str:
    rows = run(kind)
    assert [r["direction_age"] for r in rows] == [1, 0, 1], [r["direction_age"] for r in rows]
    assert rows[0]["direction_overlap"] is None and 0 < rows[1]["direction_overlap"] <= 1
    for r in rows:
        assert r["cin"] > 0 and r["cin_t"] is not None and r["cout"] < 1e-6 and r["cout_update"] is not None, r
        assert r["cin_s"] != r["cin"] and r["direction_axes"] > 0
    (folder,) = (f for f in (Path(SCRATCH.name) / kind / "runs").iterdir() if f.name not in ("again", "named"))
    record = json.loads((folder / "direction.json").read_text())
    assert (
        record["pairs"][0].startswith("run_tests/returns") and sum(record["axes"].values()) == rows[0]["direction_axes"]
    )
    assert len(list((Path(SCRATCH.name) / kind / "directions").glob("*.safetensors"))) == 1
    return f"cin {rows[0]['cin']:.3f} (null {rows[0]['cin_null']:.3f}), cout_update {rows[2]['cout_update']:.3f}"


@gate.invariant("a run: cout 0, teacher columns filled, renewed on time; the direction's file repeats the run exactly")
def _():
    figure = check("lora2r")
    assert run("lora2r") == run("lora2r", name="again"), "the run depends on who wrote the direction"
    return figure


@gate.invariant("a run with a named direction file goes the same way, and its folder is read again")
def _():
    rows = run("lora2r")
    (file,) = (f for f in (Path(SCRATCH.name) / "lora2r" / "directions").glob("*.safetensors") if "haar" not in f.name)
    with mock.patch(
        "vgrout.direction_inputs.default_path", side_effect=AssertionError("the default file was looked for")
    ):
        named = run("lora2r", name="named", artefact=file)
    assert named == rows
    stored = RunFolder.open(Path(SCRATCH.name) / "lora2r" / "runs" / "named").read_json("config.json")
    config = from_dict(stored)
    assert config.extraction.artefact == file and json.loads(json.dumps(config.to_dict())) == stored
    return f"{file.name}: the same {len(rows)} rows"


@gate.invariant("everything that changes a direction changes its identity, as runs compute it")
def _():
    config = preset("smoke", "erase", "lora2r")
    pairs = chosen_pairs(config)

    def identity(changed: RunConfig[Any] = config, of: tuple[Pair, ...] = pairs) -> str:
        return json.dumps(identity_of(changed, *load_policy(changed), of), sort_keys=True)

    sub = dataclasses.replace
    others = {
        "model": sub(config, model=sub(config.model, name="tiny:a")),
        "model seed": sub(config, model=sub(config.model, seed=1)),
        "dtype": sub(config, model=sub(config.model, dtype="bf16")),
        "adapter": sub(config, adapter=sub(config.adapter, kind="delta_s")),
        "rank": sub(config, adapter=sub(config.adapter, rank=2)),
        "init seed": sub(config, adapter=sub(config.adapter, init_seed=3)),
        "fold": sub(config, adapter=sub(config.adapter, fold=False)),
        "temperature": sub(config, rollout=sub(config.rollout, temperature=0.5)),
        "direction": sub(config, direction="haar:0"),
        "top_k": sub(config, extraction=sub(config.extraction, top_k=11)),
        "token_norm": sub(config, extraction=sub(config.extraction, token_norm="sum")),
    }
    found = {"itself": identity(), "pairs": identity(of=pairs[:-1]), "order": identity(of=pairs[::-1])}
    assert identity() == found["itself"]
    found |= {name: identity(changed) for name, changed in others.items()}
    with mock.patch("vgrout.direction_inputs.tokenizer_fingerprint", lambda tokenizer: "other"):
        found["tokenizer"] = identity()
    assert len(set(found.values())) == len(found), "two configurations share an identity"
    delta_s = sub(config.adapter, kind="delta_s")
    bases = [sub(config, adapter=sub(delta_s, quarantine_basis=basis)) for basis in ("shared", "distinct")]
    assert identity(bases[0]) != identity(bases[1])
    assert identity(sub(config, steps=9, seed=4)) == found["itself"], "what does not matter makes a new direction"
    return f"{len(found)} identities, all different"


@gate.invariant("the same on delta_s", slow=True)
def _():
    figure = check("delta_s")
    assert run("delta_s") == run("delta_s", name="again"), "the run depends on who wrote the direction"
    return figure


@gate.invariant("in bf16 both adapters train along axes that are stored in bf16", slow=True)
def _():
    figures = []
    for kind in ("lora2r", "delta_s"):
        model = dataclasses.replace(preset("smoke", "erase").model, dtype="bf16")
        rows = run(kind, name=f"bf16-{kind}", model=model)
        record = json.loads((Path(SCRATCH.name) / kind / "runs" / f"bf16-{kind}" / "direction.json").read_text())
        axes = [t for name, t in load_file(record["file"]).items() if name.startswith("v_hack/")]
        assert axes and all(t.dtype == torch.bfloat16 for t in axes), kind
        assert all(r["cin"] > 0 and r["cout"] < 2e-3 for r in rows), rows
        figures.append(f"{kind} cout {max(r['cout'] for r in rows):.1e}")
    return ", ".join(figures)


@gate.invariant("none measures what erase does and is the same run unmeasured; a placebo is another run", slow=True)
def _():
    measured, plain = run("lora2r", "none"), run("lora2r", "none", measure=False)
    assert all(r["cin"] == r["cout"] > 0 for r in measured) and all(r["cin"] is None for r in plain)
    near = lambda a, b: a == b or (None not in (a, b) and abs(a - b) < 1e-4 * max(abs(a), abs(b)))  # noqa: E731
    for a, b in zip(measured, plain, strict=True):  # teacher rows are summed by themselves where they are measured
        assert all(near(comparable(a)[k], comparable(b)[k]) for k in comparable(a)), (a, b)
    haar = run("lora2r", name="haar", direction="haar:1")
    assert haar[0]["cin"] != run("lora2r")[0]["cin"] and haar[0]["cout"] < 1e-6
    assert measured[0]["cin"] == run("lora2r")[0]["cin"], "the first gradient is the same under none and erase"
    file = next((Path(SCRATCH.name) / "lora2r" / "directions").glob("*haar*.safetensors"))
    other = preset("smoke", "erase", "lora2r")
    stranger = dataclasses.replace(other.extraction, artefact=file)
    message = refusal(lambda: train(dataclasses.replace(other, extraction=stranger)))
    assert str(file) in message and "its pairs is" in message, message
    return f"cin of three steps under none: {' '.join(format(r['cin'], '.3f') for r in measured)}"


if __name__ == "__main__":
    gate.main()
