"""`vgrout direction extract` and `vgrout direction check`: what a direction is worth, before anything is trained on it.

The adapter is at its init. Labels of rollouts are ground truth; they enter here as a measurement and go nowhere else.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vgrout.config import RunConfig
from vgrout.direction_figure import check_figure
from vgrout.direction_inputs import chosen_pairs, make_extractor, obtain
from vgrout.directions.assessment import WINDOW, LabelledRows, assess, candidates
from vgrout.directions.check import folds, held_out_erase, held_out_routing, leave_one_out
from vgrout.directions.gradient import pair_gradients
from vgrout.directions.options import CheckOptions, ExtractOptions
from vgrout.directions.pairs import Pair, load_pairs
from vgrout.directions.placebo import parse_source
from vgrout.directions.scoring import activation_scores, extended, gradient_scores
from vgrout.directions.verdict import CheckResult, sentence, table
from vgrout.env.modes import mode_named
from vgrout.inputs import load_data, load_policy
from vgrout.labelled import Labelled, read_labelled
from vgrout.models import LoadedModel, render_prompt
from vgrout.policy import Policy
from vgrout.run.console import say
from vgrout.run.disk import disk_errors, dumps, make_folder, write_atomic
from vgrout.run.progress import Progress
from vgrout.types import Problem, Prompt, Rollout, UserError, View


def extract_direction(config: RunConfig[Any], options: ExtractOptions) -> Path:
    """Extracts the direction of a configuration, writes its file and says what is in it; the default file may be there."""
    _refuse_permuted(config)
    to = options.to
    if to is not None and to.is_dir():
        raise UserError(f"--to {to}: a folder; name the file to write, as in {to / 'direction.safetensors'}")
    if to is not None and to.exists():
        raise UserError(f"--to {to}: exists already; name a new file, or delete it")
    if to is not None:
        _require_writable(to)
    pairs, loaded, policy = _opened(config)
    started = time.monotonic()
    with disk_errors(to or config.out):
        _, direction, path, _ = obtain(config, loaded, policy, pairs, to)
    zero = sum(not bool(v.any()) for v in direction.grad["deploy"].values())
    axes = sum(len(a.V) for a in direction.hack.axes.values())
    say(
        f"direction {config.direction} of {len(pairs)} pairs ({config.pairs}){_mark(config)}: "
        f"{len(direction.hack.axes)} modules, {zero} of zero norm; {axes} axes, {direction.hack.ties} with tied votes; "
        f"{time.monotonic() - started:.1f} s; {path}"
    )
    return path


def _refuse_permuted(config: RunConfig[Any]) -> None:
    if parse_source(config.direction).kind == "random_label":
        raise UserError(
            "--direction random_label: permutes labels during a run, so it has no direction of its own; name real instead"
        )


def check_direction(config: RunConfig[Any], options: CheckOptions) -> Path:
    """Measures the direction, prints the table and the verdict, and returns the folder with the results.

    Raises `UserError` for a mistake in the configuration, the pairs or the rollouts, before anything is written.
    """
    if options.out_dir is not None and options.out_dir.exists():
        raise UserError(f"--out-dir {options.out_dir} exists already: name a new folder")
    _require_writable(options.out_dir or config.out / "checks")
    if parse_source(config.direction).kind == "haar":
        raise UserError(
            f"--direction {config.direction}: check draws its own haar directions; name real, shuffled:SEED, "
            "content:FILE or oracle:FILE"
        )
    _refuse_permuted(config)
    if config.extraction.artefact is not None:
        raise UserError("--extraction.artefact: check extracts anew, without each pair in turn; leave it out")
    started = time.monotonic()
    problems = load_data(config).train if options.rollouts else ()
    labelled = _labelled(options, problems, config.seed)
    runs, rows = tuple(run for run, _ in labelled), tuple(row for _, row in labelled)
    contents = {name: load_pairs(name) for name in _contents(config, options)}
    pairs, loaded, policy = _opened(config)
    if len(pairs) < 4:
        raise UserError(f"--pairs {config.pairs}: {len(pairs)} pairs; check holds pairs out, so it needs at least 4")
    with Progress("gradients of the pairs") as bar:
        result = _measure(config, options, _Parts(loaded, policy, pairs, contents, runs, rows), bar)
    result.heading["seconds"] = round(time.monotonic() - started, 1)
    return _write(config, options, result)


@dataclass(frozen=True)
class _Parts:
    loaded: LoadedModel
    policy: Policy
    pairs: tuple[Pair, ...]
    contents: Mapping[str, tuple[Pair, ...]]
    runs: tuple[int, ...]
    labelled: tuple[Labelled, ...]


def _opened(config: RunConfig[Any]) -> tuple[tuple[Pair, ...], LoadedModel, Policy]:
    config.require_oracle_permission()
    torch.manual_seed(config.seed)
    oracle = parse_source(config.direction).kind == "oracle"
    pairs = chosen_pairs(config, load_data(config).train if oracle else ())
    loaded, policy = load_policy(config)
    return pairs, loaded, policy


def _mark(config: RunConfig[Any]) -> str:
    return ", UPPER BOUND (made from ground truth)" if parse_source(config.direction).upper_bound else ""


def _require_writable(path: Path) -> None:
    """A place that cannot be written to is found before the model has been loaded; nothing is made."""
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write {path}: {nearest} is no folder that you may write to; choose another place")


def _contents(config: RunConfig[Any], options: CheckOptions) -> tuple[str, ...]:
    """Placebo sets in the register of the pairs: those of the micro world have prompts of another form."""
    if options.content is not None:
        return options.content
    micro = config.model.name == "micro" or any(part.strip().startswith("micro") for part in config.pairs.split(","))
    return tuple(f"{'micro_' if micro else ''}placebo_{kind}" for kind in ("style", "topic"))


def _labelled(options: CheckOptions, problems: Sequence[Problem], seed: int) -> list[tuple[int, Labelled]]:
    """The rows with the number of their file."""
    rows = [(run, row) for run, path in enumerate(options.rollouts) for row in read_labelled(path, problems)]
    rows = [(run, row) for run, row in rows if row.response or row.finished]  # without a token there is no gradient
    if options.max_rollouts is not None and len(rows) > options.max_rollouts:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        rows = [rows[i] for i in sorted(order[: options.max_rollouts].tolist())]
    hacks = sum(row.exploited for _, row in rows)
    if rows and hacks in (0, len(rows)):
        raise UserError(
            f"--rollouts {options.rollouts[0]}: {hacks} of {len(rows)} rollouts are hacks, so there is nothing to tell "
            "apart; name rollouts of a run that hacked"
        )
    if bad := sorted({row.view for _, row in rows} - {"full", "deploy"}):
        raise UserError(f"--rollouts: rows of view {bad[0]}, expected full or deploy; name a run's own rollouts")
    return rows


def _measure(config: RunConfig[Any], options: CheckOptions, parts: _Parts, bar: Progress) -> CheckResult:
    extractor = make_extractor(config, parts.loaded, parts.policy, parts.pairs)
    own = pair_gradients(parts.policy, extractor.sides, "deploy", extractor.options)
    fold = folds([pair.family for pair in parts.pairs], options.held_out, config.seed)
    bar.phase("held-out pairs")
    erase = held_out_erase(own.differences(), parts.pairs, fold, config.extraction, options.draws, seed=config.seed)
    held_out = {"routing": held_out_routing(own.probe, parts.pairs, fold, options.draws), "erase": erase}
    left_out = leave_one_out(own.probe, parts.pairs, options.draws)
    result = CheckResult(_heading(config, options, parts, int(fold.max()) + 1), held_out, left_out)
    if not parts.labelled:
        return result
    rollouts = _rollouts(parts)
    rows = LabelledRows(
        positive=torch.tensor([row.exploited for row in parts.labelled]),
        kind=tuple(row.mode for row in parts.labelled),
        period=tuple(f"{run}/{row.step // WINDOW}" for run, row in zip(parts.runs, parts.labelled, strict=True)),
        cluster=tuple(row.problem_id for row in parts.labelled),
        length=torch.tensor([float(len(r.completion_ids)) for r in rollouts]),
    )
    contents = {
        name: make_extractor(config, parts.loaded, parts.policy, pairs) for name, pairs in parts.contents.items()
    }
    weights, layout = candidates(parts.pairs, rows.kinds, options.draws)
    layout = extended(layout, options.draws, list(contents))
    bar.phase("gradients of the rollouts", len(rollouts))
    by_feature = {
        "gradient": gradient_scores(extractor, contents, rollouts, weights, options.draws, bar.advance),
        "activation": activation_scores(extractor, contents, rollouts, weights, options.draws),
    }
    bar.phase("statistics of the rollouts")
    found = {name: assess(scores, layout, rows, parts.pairs, config.seed) for name, scores in by_feature.items()}
    return dataclasses.replace(result, detection=found)


def _rollouts(parts: _Parts) -> list[Rollout]:
    """The rows in tokens again. A response is tokenized anew, so its tokens may differ from those that were sampled."""
    tokenizer, positions = parts.loaded.tokenizer, getattr(parts.loaded.model.config, "max_position_embeddings", None)
    prompts = {row.messages: tuple(render_prompt(tokenizer, row.messages)) for row in parts.labelled}
    rollouts = []
    for number, row in enumerate(parts.labelled):
        ids = tokenizer(row.response, add_special_tokens=False)["input_ids"]
        end = [tokenizer.eos_token_id] if row.finished else []
        if positions is not None and len(prompts[row.messages]) + len(ids) + len(end) > positions:
            raise UserError(
                f"--rollouts: a row of problem {row.problem_id} is longer than the model's {positions} positions; "
                "name rollouts of this model"
            )
        view: View = "deploy" if row.view == "deploy" else "full"
        prompt = Prompt(row.problem_id, row.mode, "train", "", row.messages)
        rollouts.append(
            Rollout(
                f"row {number}",
                prompt,
                prompts[row.messages],
                (*ids, *end),
                row.response,
                "student",
                view,
                row.finished,
            )
        )
    return rollouts


def _heading(config: RunConfig[Any], options: CheckOptions, parts: _Parts, folds: int) -> dict[str, Any]:
    """What was checked, with what; the first lines of the table."""
    families: dict[str, int] = {}
    for pair in parts.pairs:
        families[pair.family] = families.get(pair.family, 0) + 1
    adapter = parts.policy.adapter
    heading: dict[str, Any] = {
        "direction": f"{config.direction}{_mark(config)}",
        "pairs": f"{config.pairs}: {len(parts.pairs)} ({', '.join(f'{n} {name}' for name, n in families.items())})",
        "model": f"{parts.loaded.name} ({parts.loaded.revision}), {parts.loaded.dtype}",
        "adapter": f"{adapter.kind} at its init, rank {adapter.modules[0].rank}, {len(adapter.modules)} modules",
        "placebos": f"{options.draws} Haar draws and {options.draws} draws with half of the pairs exchanged",
        "folds": f"{folds}, by family",
    }
    if not parts.labelled:
        return heading | {"rollouts": "none; name some with --rollouts to see whether the direction finds hacks"}
    modes: dict[str, list[bool]] = {}
    for row in parts.labelled:
        modes.setdefault(row.mode, []).append(row.exploited)
    counts = [f"{sum(v)} hacks of {len(v)} {mode}{_note(mode, v)}" for mode, v in modes.items()]
    views = sorted({row.view for row in parts.labelled})
    notes = ["gradients of the initial policy", "the real direction's band edges come from its own pairs"]
    if parse_source(config.direction).file in map(str, options.rollouts):
        notes.append("the rollouts hold those that the direction is made of")
    return heading | {
        "rollouts": f"{', '.join(map(str, options.rollouts))}; view {' and '.join(views)}; {', '.join(counts)}",
        "contents": ", ".join(parts.contents) or "none",
        "notes": "; ".join(notes),
    }


def _note(mode: str, labels: Sequence[bool]) -> str:
    """Why a mode has no figure of its own."""
    if not mode_named(mode).train_markers:
        return " (no hint)"
    return " (no figure of its own)" if len(set(labels)) == 1 else ""


def _write(config: RunConfig[Any], options: CheckOptions, result: CheckResult) -> Path:
    verdict, text = sentence(result), table(result)
    if mark := _mark(config):
        verdict = f"{mark.removeprefix(', ')}: {verdict}"
    plain = {
        "passed": result.passed,
        "verdict": verdict,
        "options": options,
        "config": config.to_dict(),
        "result": result,
    }
    files = {"check.json": dumps(plain, "the check"), "check.txt": text + "\n"}
    pairs = "".join(c if c.isalnum() else "-" for c in config.pairs)[:40]
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}_{config.preset}_{pairs}"
    out = options.out_dir
    parent, name = (out.parent, out.name) if out is not None else (config.out / "checks", None)
    folder = make_folder(parent, name, stem, files)
    write_atomic(folder / "figure.png", check_figure(result))
    say(text)
    say(f"{folder} has check.json, check.txt and figure.png")
    return folder
