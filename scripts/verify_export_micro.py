"""The exported deploy adapter of a trained micro run is its deploy view.

- in fp64 arithmetic the reloaded LoRA and the view have the same logits; in fp32 they differ by rounding alone, which is
  no larger than a few times what fp32 does to the plain model itself
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from _gate import Gate
from vgrout.adapter.checkpoint import load_checkpoint
from vgrout.env.prompts import render
from vgrout.export import export_run
from vgrout.inputs import load_policy
from vgrout.micro.problems import micro_problems
from vgrout.models import render_prompt
from vgrout.presets import preset
from vgrout.run.folder import RunFolder
from vgrout.session import identity
from vgrout.train import train

gate = Gate(__doc__)


def logits(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model(input_ids=row).logits.double() for row in rows]


def gap(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@gate.invariant(
    "a trained micro run's deploy export equals its view: 1e-5 in fp64, in fp32 but for rounding", slow=True
)
def _():
    config = preset("micro", "label_route")
    config = dataclasses.replace(
        config,
        allow_oracle=True,
        steps=8,
        eval=dataclasses.replace(config.eval, problems=4),
        grpo=dataclasses.replace(config.grpo, prompts_per_step=4),
    )
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        run = RunFolder.open(train(dataclasses.replace(config, out=Path(name))))
        folder = export_run(run.path, "deploy", "peft", Path(name) / "export")
        loaded, policy = load_policy(config)
        load_checkpoint(run.checkpoints()[-1], policy.adapter, identity(loaded))
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        plain = PeftModel.from_pretrained(base, str(folder)).eval()
    model, adapter = loaded.model, policy.adapter
    rows = [
        torch.tensor([render_prompt(loaded.tokenizer, render(p, "run_tests", "eval", 0).messages)])
        for p in micro_problems("test")[:12]
    ]
    with adapter.view("deploy"):
        view32 = logits(model, rows)
    with adapter.view("base"):
        base32 = logits(model, rows)
    export32 = logits(plain, rows)
    model.double()
    for module in adapter.modules:
        module.pristine = module.pristine.double()
    with adapter.merged("deploy"):
        pass  # leaving it folds the weight anew, now in fp64
    with adapter.view("deploy"):
        view64 = logits(model, rows)
    with adapter.view("base"):
        base64 = logits(model, rows)
    export64 = logits(plain.double(), rows)
    moved, rounding, scale = gap(view64, base64), gap(base32, base64), max(float(v.abs().max()) for v in view64)
    assert moved > 0.1, f"the run has hardly moved: {moved:.1e}"
    assert gap(view64, export64) < 1e-5, gap(view64, export64)
    assert gap(view32, export32) < min(1e-5 * scale, 5 * rounding), (gap(view32, export32), rounding)
    return (
        f"fp64 {gap(view64, export64):.1e}, fp32 {gap(view32, export32):.1e} (the plain model's own rounding {rounding:.1e}, "
        f"largest logit {scale:.1f}); the view moves logits by {moved:.2f}"
    )


if __name__ == "__main__":
    gate.main()
