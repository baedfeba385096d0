"""`vgrout export`: a run's adapter for peft and transformers is the view that it names, and nothing else.

Invariants:
- a LoRA export, loaded by plain peft, has the logits of its view within 1e-5 (fp32), clamped ranks and biases included,
  for a model made on the spot and for one of the user's own, and peft finds exactly the adapted modules, unscaled;
- a merged export, loaded by plain transformers, does likewise for lora2r and delta_s, in both quarantine bases, with tied
  embeddings tied and with nothing of ours in its files;
- other numbers in the quarantine change no byte of a deploy export, and they change a full export;
- bf16 factors keep a young change that bf16 copies of A and B drown; what merged bf16 weights lose of it is told; exports
  of a run in bf16 are exact in fp32;
- the card and export.json hold the run's numbers, its marks, and the proof's figures, and the card's code loads the folder.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from _cli import refused, run
from _exports import (
    CLAMPED,
    FOLDER,
    PROVENANCE,
    VIEWS,
    configured,
    export,
    files,
    gap,
    made,
    move,
    opened,
    out_of,
    own_model,
    plain,
)
from _gate import Gate
from vgrout.adapter import AdapterConfig
from vgrout.adapter.checkpoint import save_checkpoint
from vgrout.adapter.lora2r import Lora2rLinear
from vgrout.config import ModelConfig
from vgrout.export import check
from vgrout.run.folder import RunFolder
from vgrout.session import identity

gate = Gate(__doc__)


@gate.invariant("a LoRA export has its view's logits in plain peft, with clamped ranks, on exactly the adapted modules")
def _():
    worst, least, ranks = 0.0, float("inf"), set()
    small = ModelConfig(name=own_model(), dtype="fp32", threads=1)
    cases = {"tiny": configured(adapter=CLAMPED), "own": configured(adapter=AdapterConfig(rank=12), model=small)}
    for label, config in cases.items():
        folder = made(f"lora-{label}", config)
        for view in VIEWS:
            exported = export(folder, view, "peft", f"lora-{label}-{view}")
            base = str(exported / "base") if label == "tiny" else config.model.name
            assert (exported / "base").exists() == (label == "tiny")
            error, change = gap(folder, exported, view, base)
            worst, least = max(worst, error), min(least, change)
            model, _ = plain(exported, base)
            found = {name: m for name, m in model.named_modules() if type(m).__module__.startswith("peft.tuners.lora")}
            found = {name: m for name, m in found.items() if hasattr(m, "scaling")}
            _, adapter = opened(folder)
            blocks = 2 if view == "deploy" else 4
            wanted = {f"base_model.model.{m.name}": blocks * m.rank for m in adapter.modules}
            assert {name: m.r["default"] for name, m in found.items()} == wanted, "other modules or ranks"
            assert all(m.scaling["default"] == 1.0 for m in found.values())
            ranks |= {m.rank for m in adapter.modules}
            stored = json.loads((exported / "adapter_config.json").read_text())
            assert stored["base_model_name_or_path"] == config.model.name and stored["task_type"] == "CAUSAL_LM"
            assert stored["bias"] == "none" and stored["lora_dropout"] == 0 and stored["r"] == stored["lora_alpha"]
            assert stored["target_modules"] == sorted(m.name for m in adapter.modules)
            assert set(stored["rank_pattern"]) == set(stored["alpha_pattern"]) != set(), "no rank was clamped"
    assert worst <= 1e-5 < 0.05 < least, (worst, least)
    assert len(ranks) > 2, ranks
    return f"logits within {worst:.1e} where the views move them by {least:.2f} or more; block ranks {sorted(ranks)}"


@gate.invariant(
    "a merged export has its view's logits in plain transformers, for lora2r and delta_s in both bases", slow=True
)
def _():
    worst, least = 0.0, float("inf")
    small = ModelConfig(name=own_model(), dtype="fp32", threads=1)
    cases = {
        "lora2r": (configured(adapter=CLAMPED), 0.3),
        "untied": (configured(adapter=AdapterConfig(rank=12), model=small), 0.3),
        "shared": (configured(adapter=AdapterConfig(kind="delta_s")), 0.03),
        "distinct": (configured(adapter=AdapterConfig(kind="delta_s", quarantine_basis="distinct")), 0.03),
    }
    for label, (config, moved) in cases.items():
        folder = made(f"merged-{label}", config, moved)
        for view in VIEWS:
            exported = export(folder, view, "merged", f"merged-{label}-{view}")
            error, change = gap(folder, exported, view, None)
            worst, least = max(worst, error), min(least, change)
            model, _ = plain(exported, None)
            tied = label != "untied"
            same = model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")
            with safe_open(exported / "model.safetensors", framework="pt") as handle:
                names = set(handle.keys())
            assert same == tied and ("lm_head.weight" in names) != tied, (label, same)
            fresh = AutoModelForCausalLM.from_config(model.config)
            assert names <= fresh.state_dict().keys(), "something of ours is in the files"
            assert (exported / "generation_config.json").exists() and (exported / "tokenizer.json").exists()
    assert worst <= 1e-5 < 0.05 < least, (worst, least)
    return (
        f"logits within {worst:.1e} where the views move them by {least:.2f} or more, {len(cases)} adapters x 2 views"
    )


@gate.invariant("other numbers in the quarantine change no byte of a deploy export, and change a full one", slow=True)
def _():
    compared = 0
    configs_of = {"lora2r": (configured(adapter=CLAMPED), ("peft", "merged"))}
    configs_of["delta_s"] = (configured(adapter=AdapterConfig(kind="delta_s")), ("merged",))
    for label, (config, forms) in configs_of.items():
        folder = made(f"bytes-{label}", config, 0.1)
        loaded, adapter = opened(folder)
        move(adapter, 0.2, seed=99, block="quarantine")
        stored = RunFolder.open(folder).checkpoints()[-1]
        first = stored.read_bytes()
        save_checkpoint(stored, adapter, identity(loaded), step=6, config=config.to_dict())
        other = stored.read_bytes()
        assert other != first
        for form in forms:
            for view in VIEWS:
                found = []
                for content in (first, other):
                    stored.write_bytes(content)
                    found.append(files(export(folder, view, form, "one")))
                one, two = found
                differing = {name for name in one if one[name] != two.get(name)}
                weights = {"adapter_model.safetensors" if form == "peft" else "model.safetensors"}
                assert one.keys() == two.keys() and weights | set(PROVENANCE) <= one.keys()
                # The card of a full export names its checkpoint by hash, and its figures are of other weights.
                assert differing == (set() if view == "deploy" else weights | set(PROVENANCE)), (
                    label,
                    form,
                    view,
                    differing,
                )
                compared += len(one)
    return f"{compared} files compared, card and figures among them; a full export differs in its weights and what they say"


@gate.invariant(
    "bf16 factors keep a young change that copies of A and B drown; a merged loss is told; bf16 runs are exact in fp32",
    slow=True,
)
def _():
    folder = made("young", configured(adapter=AdapterConfig(rank=8)), 0.002)
    _, adapter = opened(folder)
    ours = naive = size = 0.0
    exported = export(folder, "full", "peft", "young", dtype="bf16")
    stored = load_file(exported / "adapter_model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    for module in adapter.modules:
        assert isinstance(module, Lora2rLinear)
        A, B = (stored[f"base_model.model.{module.name}.lora_{x}.weight"].double() for x in "AB")
        exact = (module.B.double() @ module.A.double() - module.B0.double() @ module.A0.double()).detach()
        copies = module.B.bfloat16().double() @ module.A.bfloat16().double() - module.B0.double() @ module.A0.double()
        ours += float((B @ A - exact).square().sum())
        naive += float((copies.detach() - exact).square().sum())
        size += float(exact.square().sum())
    ours, naive = (ours / size) ** 0.5, (naive / size) ** 0.5
    assert ours < 5e-3 and naive > 0.3, (ours, naive)
    reported = json.loads((exported / "export.json").read_text())["proof"]["change_error"]
    assert abs(reported / ours - 1) < 0.05, (reported, ours)
    merged = export(folder, "full", "merged", "young-merged", dtype="bf16")
    lost = json.loads((merged / "export.json").read_text())["proof"]["change_error"]
    assert lost > 0.05 and f"{lost:.0%}" in (merged / "README.md").read_text(), lost
    model = ModelConfig(name="tiny", dtype="bf16", threads=1)
    run_in_bf16 = made("bf16", configured(adapter=CLAMPED, model=model))
    figures = []
    for form, dtype in (("peft", "fp32"), ("peft", "bf16"), ("merged", "fp32"), ("merged", None)):
        proof = json.loads((export(run_in_bf16, "deploy", form, "bf16", dtype=dtype) / "export.json").read_text())
        error, bound = proof["proof"]["error"], proof["proof"]["tolerance"]
        assert dtype != "fp32" or error <= 1e-5, (form, error)
        assert error <= bound < 0.1 * proof["proof"]["scale"]
        figures.append(f"{form} {proof['dtype']} {error:.1e}")
    return f"error of a 0.2 % change {ours:.1e}, naive {naive:.2f}, merged {lost:.2f}; a bf16 run: {', '.join(figures)}"


@gate.invariant("the card and export.json hold the run's numbers, its marks, and the proof's figures")
def _():
    config = configured("label_route", adapter=AdapterConfig(rank=4), oracle_tuned_on="micro:validation", seed=5)
    folder = made("card", config)
    code, out, err = run("export", str(folder), "--view", "deploy", "--to", "peft", "--out", str(out_of("card")))
    exported = FOLDER / "exports" / "card"
    assert code == 0 and out.splitlines()[-1] == str(exported), err
    text, record = (exported / "README.md").read_text(), json.loads((exported / "export.json").read_text())
    stored = folder / "checkpoints/ckpt_update0006.safetensors"
    proof = check.Proof(**record["proof"] | {"blocks": tuple(record["proof"]["blocks"])})
    wanted = [
        "label_route (UPPER BOUND: reads ground truth)",
        "smoke, seed 5",
        "6 of 6 optimizer steps",
        "oracle-tuned on micro:validation",
        "`ckpt_update0006.safetensors` |",
        "quarantine-ablated",
        "| held-out | base | run_tests (eval markers) | 3/40 .07 [.03, .20] | 21/40 .53 [.37, .67] | 40/40 |",
        "| held-out | full | run_tests (eval markers) | 17/40 .42 [.29, .58] | 11/40 .28 [.16, .43] | 40/40 |",
        "| held-out | deploy | run_tests (eval markers) | 0/40 at most .09 | 19/40 .47",
        json.loads((folder / "environment.json").read_text())["code"]["revision"],
        *proof.lines(),
    ]
    for part in wanted:
        assert part in text, f"{part!r} is not in the card:\n{text}"
    assert all(line in out for line in proof.lines()) and "COLLAPSED" not in text and "at revision" in text
    assert record["upper_bound"] and record["checkpoint"] == {"file": stored.name, "sha256": None, "step": 6}
    code_block = text.split("```python\n")[1].split("```")[0].replace('"card', f'"{exported}')
    scope: dict[str, Any] = {}
    exec(code_block, scope)
    assert isinstance(scope["model"], PeftModel), "the card's own code does not load the folder"
    first = export(folder, "full", "merged", "first", checkpoint=stored.with_name("ckpt_update0002.safetensors"))
    early = (first / "README.md").read_text()
    assert "no evaluation of this checkpoint" in early and "17/40" not in early and "2 of 6" in early
    assert "not quarantine-ablated" in early and "both blocks" in early
    result = json.loads((folder / "eval.json").read_text())
    result["rows"] = [row | {"format_ok": row["view"] != "deploy"} for row in result["rows"]]
    (folder / "eval.json").write_text(json.dumps(result))
    assert "COLLAPSED: the deploy view" in (export(folder, "deploy", "peft", "flag") / "README.md").read_text()
    (folder / "eval.json").write_text(json.dumps(result | {"schema": "older"}))
    refused(
        "export", str(folder), "--view", "full", "--to", "peft", "--out", str(out_of("x")), says=("eval.json", "older")
    )
    return f"{len(wanted)} facts in the card; an unevaluated checkpoint shows none of the run's rates"


if __name__ == "__main__":
    gate.main()
