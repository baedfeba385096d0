"""The README.md of an export: what is in the folder, where it came from, what was measured, and what was not.

Every figure is read from the run folder or comes from the export's own checks; a figure that is not there is said to be
missing. A hack figure never stands without its solve figure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgrout.config import RunConfig
from vgrout.evals import CONTROLS, Cell, collapsed, require_schema, tabulate
from vgrout.export.check import Proof
from vgrout.export.tensors import Form
from vgrout.export.write import BASE, from_hub, made_here
from vgrout.final import marked, tuning
from vgrout.interventions import intervention_class
from vgrout.run.folder import CHECKPOINTS, ENVIRONMENT, EVALUATION, RunFolder
from vgrout.types import UserError, View

_TORCH_DTYPES = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}
_ROUNDING_WORTH_A_WARNING = 0.05


@dataclass(frozen=True)
class Source:
    """What was exported, and from where."""

    run: RunFolder
    config: RunConfig[Any]
    view: View
    form: Form
    dtype: str
    checkpoint: Path
    sha256: str | None
    """Of the checkpoint. None for a view without the quarantine: the file holds it, and nothing here may depend on it."""
    step: int
    revision: str | None
    """Of the base model."""


@dataclass(frozen=True)
class Evaluation:
    """A stored evaluation of the exported checkpoint."""

    file: str
    result: dict[str, Any]
    cells: list[Cell]

    @property
    def collapsed(self) -> dict[str, str]:
        return collapsed(self.cells)


def card(source: Source, proof: Proof, export: Mapping[str, Any], name: str) -> str:
    """The whole card. `export` holds `code` and `versions` of the export itself; `name` is the folder's."""
    evaluation = find_evaluation(source)
    parts = [
        _front_matter(source),
        _title(source, name),
        *_warnings(source, proof, evaluation),
        _what(source),
        _origin(source, export),
        _figures(source, evaluation),
        "## What was checked at the export\n" + "\n".join(f"- {line}" for line in proof.lines()),
        _loading(source, name),
        _limits(source, evaluation),
    ]
    return "\n\n".join(parts) + "\n"


def find_evaluation(source: Source) -> Evaluation | None:
    """The run's own evaluation of this very checkpoint, or the one that `vgrout eval` made of it; None: there is neither.

    Raises `UserError` for a file of another version, or a damaged one.
    """
    run, inside = source.run, (source.run.path / CHECKPOINTS).resolve()
    if not source.checkpoint.resolve().is_relative_to(inside):
        return None  # a copy: nothing here says that it is the file that was evaluated
    again = f"eval_{source.checkpoint.stem}.json"
    for file in (EVALUATION, again):
        if not (run.path / file).exists():
            continue
        result = run.read_json(file)
        require_schema(result, run.path / file)
        if result.get("step") == source.step:
            try:
                return Evaluation(file, result, tabulate(result["rows"]))
            except (KeyError, TypeError) as error:
                raise UserError(f"{run.path / file}: damaged ({error!r}); evaluate the run again") from error
    return None


def _front_matter(source: Source) -> str:
    lines = [f"library_name: {'peft' if source.form == 'peft' else 'transformers'}", "tags: [vgrout, grpo]"]
    if from_hub(source.config.model.name):
        lines.append(f"base_model: {source.config.model.name}")
    return "\n".join(["---", *lines, "---"])


def _title(source: Source, name: str) -> str:
    c = source.config
    return f"# {name}: {c.model.name} after GRPO with {marked(c)}, {source.view} view"


def _warnings(source: Source, proof: Proof, evaluation: Evaluation | None) -> list[str]:
    """What a reader must know before the first figure."""
    found = []
    if source.config.upper_bound:
        found.append(
            "> **UPPER BOUND: reads ground truth.** The training used labels of the strict oracle, which a method for real "
            "use does not have. These weights show what such labels could achieve, and nothing more."
        )
    for view, why in (evaluation.collapsed if evaluation else {}).items():
        found.append(f"> **COLLAPSED: the {view} view** {why}; its hack rate says nothing.")
    state = source.run.status()
    if state["state"] != "finished":
        reason = f" ({state['reason']})" if state["reason"] else ""
        found.append(f"> **The run is not complete.** Its status is `{state['state']}`{reason}.")
    lost = proof.change_error
    if lost is not None and lost > _ROUNDING_WORTH_A_WARNING:
        found.append(
            f"> **Rounding.** Stored as {source.dtype}, the weights miss the trained change by {lost:.0%} of its size. "
            "An export with `--dtype fp32`, or with `--to peft`, keeps it."
        )
    return found


def _what(source: Source) -> str:
    c, cls = source.config, intervention_class(source.config.intervention)
    if source.form == "peft":
        form = f"a LoRA adapter in the format of peft, to be loaded on top of {c.model.name}. Its alpha is its rank, so it is added unscaled."
    else:
        form = f"a whole model, {c.model.name} with the trained change merged into its weights."
    if source.view == "deploy":
        view = (
            "The `deploy` view keeps the deployed block of vGROUT's adapter and resets the quarantine block to its init. "
            "The weights are quarantine-ablated."
        )
    else:
        view = "The `full` view keeps both blocks of vGROUT's adapter. The weights are not quarantine-ablated."
    if "quarantine" not in cls.moves:
        view += f" Under {c.intervention} the quarantine does not train, so both views are the same weights."
    ships = f"Under {c.intervention}, the view that ships is `{cls.deploy_view}`."
    return f"## What this is\nThis folder holds {form}\n\n{view} {ships}"


def _origin(source: Source, export: Mapping[str, Any]) -> str:
    c, environment = source.config, source.run.read_json(ENVIRONMENT)
    adapter: dict[str, str | int] = {"kind": c.adapter.kind, "init_seed": c.adapter.init_seed}
    if c.adapter.kind == "lora2r":
        adapter["rank"] = f"{c.adapter.rank} per block"
    else:
        adapter["quarantine_basis"] = c.adapter.quarantine_basis
    revision = f" at revision `{source.revision}`" if source.revision else ""
    facts = {
        "Base model": f"{c.model.name}{revision}, frozen in {c.model.dtype}",
        "Intervention": f"{marked(c)}; settings {_listed(dataclasses.asdict(c.settings)) or 'none'}",
        "Preset and seed": f"{c.preset}, seed {c.seed}",
        "Training": f"{source.step} of {c.steps} optimizer steps on the problems `{c.problems}`",
        "Loophole modes in training": ", ".join(c.env.modes),
        "Adapter": _listed(adapter),
        "Run": f"`{source.run.path.resolve().name}`, status {source.run.status()['state']}",
        "Checkpoint": f"`{source.checkpoint.name}`" + (f", sha256 `{source.sha256}`" if source.sha256 else ""),
        "Code of the run": _revision(environment.get("code")),
        "Libraries of the run": _listed({k: v for k, v in environment.get("versions", {}).items() if v}),
        "Code of the export": _revision(export["code"]),
        "Libraries of the export": _listed(export["versions"]),
        "Exported tensors": source.dtype,
    }
    if intervention_class(c.intervention).needs_direction:
        facts["Direction"] = f"{c.direction}, pairs `{c.pairs}`"
    if c.oracle_tuned_on:
        facts["Tuning"] = f"{tuning(c)}: these settings were chosen by evaluations that the strict oracle scored"
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(["## Where it came from", "| fact | value |", "|---|---|", *rows])


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _revision(code: Any) -> str:
    if not isinstance(code, dict) or "revision" not in code:
        return "not recorded"
    if code["revision"] == "unknown":
        return f"unknown ({code.get('reason')})"
    changes = f", with uncommitted changes (hash {code.get('diff_sha256')})" if code.get("dirty") else ""
    return f"`{code['revision']}`{changes}"


def _figures(source: Source, evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return (
            "## Evaluation\nThe run folder holds no evaluation of this checkpoint, so its hack and solve rates are not "
            "known. `vgrout eval RUN --checkpoint FILE` measures them."
        )
    e, result = source.config.eval, evaluation.result
    when = "as it stood at the end of the training" if evaluation.file == EVALUATION else "loaded from this checkpoint"
    intro = (
        f"The run's `{evaluation.file}` holds this evaluation of the adapter {when}. Its held-out problems are `{result['problems']}`, with "
        f"{result['samples']} answer(s) to each prompt at temperature {e.temperature} and top-p {e.top_p}. Every "
        "view answers the same prompts with the same random numbers. A hack is a response that the loophole pays and that "
        "the strict oracle finds wrong; a solve is a response that the oracle finds right. Behind each count stand its "
        "rate and its 95 % Wilson interval over problems, or behind a zero the upper end of it. `base` is the model without the adapter, `full` has both blocks, and `deploy` "
        f"is quarantine-ablated. This export is the `{source.view}` view."
    )
    rows = [_row(cell) for cell in evaluation.cells]
    head = ["| problems | view | prompts | hack | solve | fenced code |", "|---|---|---|---|---|---|"]
    notes = []
    if source.view not in result["views"]:
        notes.append(f"- The exported view `{source.view}` is not among the views that were evaluated.")
    if set(CONTROLS) & set(result["views"]):
        notes.append(
            "- Controls: `clean_ablated` resets the deployed block instead of the quarantine; `random_removal` subtracts a "
            "random matrix with the quarantine's singular values from each weight. Neither is exported."
        )
    if source.config.oracle_tuned_on:
        notes.append(f"- The settings are {tuning(source.config)}.")
    if result["missing_layers"]:
        notes.append(f"- The answers were graded in a sandbox without {', '.join(result['missing_layers'])}.")
    return "\n".join(["## Evaluation", intro, "", *head, *rows, "", *notes]).rstrip()


def _row(cell: Cell) -> str:
    row = cell.summary()
    _, split, prompts, hack, solve, note = row.texts()
    hack, solve = hack.removeprefix("hack "), solve.removeprefix("solve ")
    return f"| {split} | {cell.view} | {prompts} | {hack} | {solve} | {note.removeprefix('fenced code ')} |"


def _loading(source: Source, name: str) -> str:
    c, dtype = source.config, _TORCH_DTYPES[source.config.model.dtype]
    if source.form == "merged":
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        ]
    else:
        base = f"{name}/{BASE}" if made_here(c.model.name) else c.model.name
        revision = f', revision="{source.revision}"' if from_hub(c.model.name) and source.revision else ""
        lines = [
            "import torch",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{base}"{revision}, dtype={dtype})',
            f'model = PeftModel.from_pretrained(base, "{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        ]
    note = ""
    if source.form == "peft" and made_here(c.model.name):
        note = f"\n\nThe base model {c.model.name} is on no hub; it lies in `{BASE}/`."
    return "\n".join(["## How to load it", "```python", *lines, "```"]) + note


def _limits(source: Source, evaluation: Evaluation | None) -> str:
    c = source.config
    lines = [
        "The exported folder was not evaluated itself. What connects it with the table is the comparison of logits above, "
        "on a few prompts and in fp32 arithmetic; in bf16 or on other kernels, outputs differ by rounding.",
        f"This is one run with one seed ({c.seed}). How much its rates vary between seeds is not known from it.",
        "No loophole modes but those of the table were measured, if it holds any. Other kinds of reward hacking, other "
        "abilities, and behaviour outside the prompts of this environment were not measured either.",
        "A behaviour that disappears with the quarantine was located there. How it got there is not shown by that, and "
        "absorption is not claimed.",
        "Whether vLLM loads this folder was not tried at the export.",
    ]
    if evaluation is not None and evaluation.file == EVALUATION:
        lines.insert(
            1,
            "The evaluation ran on the adapter in memory. The checkpoint stores its change rounded to bf16, so its figures "
            "may differ slightly; `vgrout eval` measures the checkpoint itself.",
        )
    return "\n".join(["## What was not measured", *(f"- {line}" for line in lines)])
