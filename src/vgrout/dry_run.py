"""`vgrout train PRESET --dry-run`: what a run would do and need, from its configuration alone.

Nothing is downloaded or written, and no weights are made or read. What cannot be known here is said, with the remedy.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from vgrout.config import RunConfig
from vgrout.direction_inputs import chosen_pairs, require_use, wants_direction
from vgrout.directions.pairs import Pair
from vgrout.estimate import Memory, Shape, checkpoint_bytes, estimate, shape_of, total
from vgrout.evals import CONTROLS, FREE, VIEW_NAMES, Asked
from vgrout.final import marked
from vgrout.inputs import Data, check_sampling, group_plan, load_data
from vgrout.interventions import intervention_class
from vgrout.plan import Lengths, checkpoints, lengths, local_tokenizer, work
from vgrout.presets import preset
from vgrout.types import MissingHere, UserError

GB = 1e9


def dry_run(config: RunConfig[Any]) -> None:
    """Prints the report. Raises `UserError` for a mistake in the configuration that would stop the run as well."""
    config.require_oracle_permission()
    check_sampling(config)
    require_use(config)
    if config.rollout.pool != "demonstrations" and not Path(config.rollout.pool).is_file():
        raise UserError(
            f"--rollout.pool {config.rollout.pool}: no such file; name a .jsonl or .jsonl.gz file, or demonstrations"
        )
    data, missing = _or_reason(load_data, config)
    pairs, no_pairs = _or_reason(_pairs, config, data)
    tokenizer = local_tokenizer(config.model.name)
    size = len(tokenizer) if tokenizer is not None else None
    shape, unknown = _or_reason(shape_of, config.model.name, size)
    found = lengths(config, data, pairs or (), tokenizer)
    print(f"dry run of {config.preset} with {marked(config)}: nothing was downloaded, written or run")
    print("\n" + settings_text(config))
    print("\nproblems\n" + (problems_text(config, data) if data else f"  {missing}"))
    if no_pairs:
        print(f"  {no_pairs}")
    print("\nwork\n" + work_text(config, data, found))
    print("\n" + (memory_text(config, shape, data, found) if shape else f"memory\n  {unknown}"))


def _or_reason(act: Any, *arguments: Any) -> tuple[Any, str]:
    """What the function returns, or None and the message where this machine lacks a file; other mistakes are raised."""
    try:
        return act(*arguments), ""
    except MissingHere as error:
        return None, str(error)


def _pairs(config: RunConfig[Any], data: Data | None) -> tuple[Pair, ...]:
    return chosen_pairs(config, data.train if data else ()) if wants_direction(config) else ()


def settings_text(config: RunConfig[Any]) -> str:
    """Every setting; those that differ from the preset are marked and show what the preset has."""
    kind = config.adapter.kind
    base = flat(preset(config.preset, config.intervention, kind).to_dict())
    own = flat(config.to_dict())
    width = max(map(len, own))
    lines = [f"settings (* differs from the preset {config.preset} on {kind})"]
    for name, value in own.items():
        same = name in base and base[name] == value
        lines.append(
            f"{' ' if same else '*'} {name:{width}}  {_shown(value)}{'' if same else f'   (preset: {_shown(base.get(name))})'}"
        )
    return "\n".join(lines)


def flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def problems_text(config: RunConfig[Any], data: Data) -> str:
    """The splits: problems by set and mode, and how many prompts have no hint."""
    modes = Counter(data.draw.partition.values())
    steps = [p for step in range(config.steps) for p in data.draw.prompts(step)]
    free = sum(p.mode == FREE for p in steps)
    lines = [
        f"  training     {len(data.train):5} problems of {config.problems}: "
        + ", ".join(f"{mode} {n}" for mode, n in sorted(modes.items())),
        f"  held out     {len(data.held_out):5} problems of {config.eval_problems or 'the same set, or the built-in one'}: "
        + ", ".join(f"{mode} {n}" for mode, n in sorted(Counter(data.eval_partition.values()).items())),
    ]
    if data.curve:
        lines.append(f"  validation   {len(data.curve.problems):5} problems for the curve, {data.curve.source}")
    epochs = len(steps) / len(data.train)
    shown = len({p.problem_id for p in steps})
    lines.append(
        f"  drawn        {len(steps):5} prompts over {shown} problems ({epochs:.2f} epochs), {free} of them without a hint "
        f"({free / len(steps):.2f}; asked for {config.env.unhackable_frac:g})"
    )
    return "\n".join(lines)


def work_text(config: RunConfig[Any], data: Data | None, found: Lengths) -> str:
    """Steps, rollouts, tokens, rows of a group, answers of the evaluation, checkpoints."""
    cls, plan, g = intervention_class(config.intervention), group_plan(config), config.grpo
    prompts = config.steps * g.prompts_per_step
    shown = [(s, p.mode) for s in range(config.steps) for p in data.draw.prompts(s)] if data else []
    shown = shown or [(s, config.env.modes[0]) for s in range(config.steps) for _ in range(g.prompts_per_step)]
    teacher = sum(plan.teacher_rows(mode, s) for s, mode in shown)
    first = plan.teacher_rows(config.env.modes[0], 0)
    deploy = plan.deploy_rows(g.group_size - first) if cls.routed else 0
    sampled = prompts * g.group_size - teacher
    off = f", none from step {plan.teacher_off_step} on" if first and plan.teacher_off_step is not None else ""
    lines = [
        f"  steps        {config.steps} x {g.prompts_per_step} prompts x {g.group_size} rollouts = {prompts * g.group_size:,} rollouts",
        f"  a group      {g.group_size - first - deploy} sampled in view full, {deploy} in view deploy, {first} of the teacher pool{off}",
        f"  generated    {sampled:,} rollouts, {sampled * config.rollout.max_new:,} tokens at most ({config.rollout.max_new} each)",
        f"  prompts      {found.note}",
    ]
    lines += [f"  evaluation   {line}" for line in evaluation_lines(config, data)]
    return "\n".join(lines)


def evaluation_lines(config: RunConfig[Any], data: Data | None) -> list[str]:
    """Prompts x views x samples of each split."""
    if data is None:
        return ["unknown without the problems"]
    e, cls = config.eval, intervention_class(config.intervention)

    def line(part: Asked, samples: int, often: str = "") -> str:
        views = tuple(
            dict.fromkeys((*part.views, *(CONTROLS if part.split == "held-out" and cls.routed and e.controls else ())))
        )
        n, names = len(part.prompts), ", ".join(VIEW_NAMES[v] for v in views)
        return f"{part.split}: {n} prompts x {len(views)} views x {samples} = {n * len(views) * samples:,} answers ({names}){often}"

    lines = [line(part, e.samples) for part in data.final if part.prompts]
    if data.curve and e.curve_every:
        lines.append(line(data.curve.asked, 1, f", every {e.curve_every} updates"))
    return lines


def memory_text(config: RunConfig[Any], shape: Shape, data: Data | None, found: Lengths) -> str:
    """The estimate by phase for answers of the full and of an eighth of the length, and which phase peaks."""
    long, short = (work(config, shape, data, found, new) for new in answer_lengths(config))
    tables = [estimate(w) for w in (long, short)]
    totals = [memory.totals() for memory in tables]
    device = config.model.device
    lines = [
        f"checkpoints\n  {checkpoints(config)} files of {checkpoint_bytes(long) / 1e6:,.1f} MB at most, and the newest two states for --resume",
        "",
        f"memory on {device} for {config.model.name} in {config.model.dtype}, GB (an estimate: docs/memory.md)",
    ]
    for title, terms in (("model and adapter", tables[0].loaded), ("while training lasts", tables[0].training)):
        lines.append(f"  {_gb(total(terms))}  {title}")
        lines += [f"    {_gb(t.bytes)}  {t.what}" for t in terms]
    lines.append(
        f"  peak of each phase, all of this included, when answers have {long.sampling.new} | {short.sampling.new} tokens"
    )
    for phase in totals[0]:
        lines.append(f"  {_gb(totals[0][phase])} | {_gb(totals[1][phase]).strip():>7}  {phase}")
        worst = max(tables, key=lambda m: total(m.phases[phase]))
        lines += [f"    {_gb(t.bytes)}  {t.what}" for t in worst.phases[phase]]
    lines.append("  in the host's memory besides" if long.cuda else "  besides, in the same memory")
    lines += [f"    {_gb(t.bytes)}  {t.what}" for t in tables[0].host]
    phase, peak = max((m.peak() for m in tables), key=lambda item: item[1])
    besides = "; a CUDA context and the allocator's rounding come on top" if long.cuda else ""
    lines.append(f"  PEAK {_gb(peak).strip()} GB, in {phase}{besides}")
    return "\n".join([*lines, *_against_device(config, peak, phase, shape, data, found)])


def answer_lengths(config: RunConfig[Any]) -> tuple[int, int]:
    """Where every answer is cut at its limit, and where they are an eighth of it, so that more share a micro-batch."""
    return config.rollout.max_new, max(1, config.rollout.max_new // 8)


def _gb(size: int) -> str:
    return f"{size / GB:8.2f}" if size >= 5e6 else f"{size / GB:8.4f}"


def _against_device(
    config: RunConfig[Any], peak: int, phase: str, shape: Shape, data: Data | None, found: Lengths
) -> list[str]:
    """The device's memory where it is here, and the largest --rollout.max-rows that fits where decoding is the peak."""
    import torch

    there = config.model.device.startswith("cuda") and torch.cuda.is_available()
    if there:
        size = torch.cuda.get_device_properties(torch.device(config.model.device)).total_memory
        verdict = "fits" if peak < 0.92 * size else "does NOT fit"
        lines = [f"  {torch.cuda.get_device_name(0)} has {size / GB:.1f} GB: it {verdict}"]
    elif config.model.device.startswith("cuda"):
        lines = ["  no CUDA device is here to compare it with"]
    else:
        return []
    if phase in ("sampling", "evaluation"):
        for rows in (256, 128, 64, 32, 16, 8):
            fewer = replace(config, rollout=replace(config.rollout, max_rows=rows))
            memory: Memory = estimate(work(fewer, shape, data, found, config.rollout.max_new))
            lines.append(
                f"    with --rollout.max-rows {rows:3}: {memory.peak()[1] / GB:8.2f} GB, in {memory.peak()[0]}"
            )
    return lines
