"""`vgrout sample RUN`: completions of a run's checkpoint in one view, with what the grader says of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vgrout.adapter.checkpoint import load_checkpoint
from vgrout.config import RunConfig
from vgrout.env.modes import mode_named
from vgrout.env.prompts import render
from vgrout.evals import FREE, VIEW_NAMES
from vgrout.final import marked
from vgrout.inputs import check_prompt_lengths, evaluation_params, load_data, load_policy, open_grader
from vgrout.rollout.base import Request, seed_from
from vgrout.rollout.hf import HFSampler
from vgrout.run.console import say
from vgrout.run.disk import dumps, write_atomic
from vgrout.run.folder import RunFolder
from vgrout.run.intervals import proportion
from vgrout.run.progress import Progress
from vgrout.session import identity
from vgrout.splits import Data
from vgrout.stored import stored_config, stored_limits
from vgrout.types import Markers, Problem, Prompt, Rollout, UserError, Verdict

HEAD = 12
"""Lines of a prompt that are printed; the hint's line is printed in any case."""


def sample_command(
    run: Annotated[Path, tyro.conf.Positional],
    view: Literal["deploy", "full", "base"],
    n: int = 4,
    problem: str | None = None,
    mode: str | None = None,
    markers: Markers = "eval",
    temperature: float | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    grade: bool = True,
    json: Path | None = None,
) -> None:
    """Samples completions of a run's adapter on held-out problems and prints each with its verdict.

    Args:
        run: Run folder.
        view: deploy (quarantine-ablated), full (both blocks) or base (without the adapter).
        n: Completions in all; without --problem each is of another held-out problem while there are some.
        problem: Id of a problem of the run, held-out or trained on; all completions are of it then.
        mode: Loophole mode of the prompts, or gt_only (no hint); none: the one that the run gives each problem.
        markers: Family of the markers that hints disclose; eval ones were not shown in training.
        temperature: Sampling temperature, 0 for greedy; none: the evaluation's.
        seed: Decides the problems that are chosen and the tokens that are drawn.
        checkpoint: Checkpoint file; none: the run's last numbered one.
        grade: Grade the completions in the sandbox.
        json: File that receives the rows.
    """
    if n < 1 or seed < 0:
        raise UserError(f"--n {n}, --seed {seed}: expected at least 1 completion and a seed of at least 0")
    if mode is not None:
        mode_named(mode)
    folder = RunFolder.open(run)
    config, path = stored_config(folder), checkpoint or _last_checkpoint(folder)
    if temperature is not None:
        config = replace(config, eval=replace(config.eval, temperature=temperature))
    data = load_data(config)
    prompts = _prompts(config, data, n, problem, mode, markers, seed)
    params = evaluation_params(config)
    loaded, policy = load_policy(config)
    step = load_checkpoint(path, policy.adapter, identity(loaded), intervention=config.intervention)
    check_prompt_lengths(loaded, prompts, config, "eval")

    say(
        f"{marked(config)}, {path.name} ({step} updates), {VIEW_NAMES[view]} view, temperature {params.temperature:g}, "
        f"top_p {params.top_p:g}, seed {seed}"
    )
    sampler = HFSampler(
        loaded.model,
        loaded.tokenizer,
        policy.adapter,
        params,
        seed_from("sample", seed),
        max_rows=config.rollout.max_rows,
    )
    requests = [Request(prompt, view, f"sample/{i}") for i, prompt in enumerate(prompts)]
    with Progress(f"sampling the {view} view", total=n) as bar:
        rollouts = sampler.sample(requests, 0, on_finish=lambda _: bar.advance())
    verdicts, missing = _verdicts(config, data, folder, rollouts) if grade else ([None] * n, ())
    rows = [_row(rollout, verdict) for rollout, verdict in zip(rollouts, verdicts, strict=True)]
    for i, row in enumerate(rows):
        say(_text(rollouts[i].prompt, row, again=i > 0 and prompts[i] == prompts[i - 1]))
    say(_tally(rows, missing))
    if json is not None:
        about: dict[str, Any] = {"run": str(run), "checkpoint": str(path), "step": step, "view": view, "seed": seed}
        about |= {"sampling": asdict(params), "intervention": config.intervention, "upper_bound": config.upper_bound}
        write_atomic(json, dumps(about | {"missing_layers": list(missing), "rows": rows}, str(json)))
        say(str(json))


def _last_checkpoint(run: RunFolder) -> Path:
    if not (stored := run.checkpoints()):
        raise UserError(f"{run.path} has no checkpoint; name one with --checkpoint FILE")
    return stored[-1]


def _prompts(
    config: RunConfig[Any], data: Data, n: int, named: str | None, mode: str | None, markers: Markers, seed: int
) -> tuple[Prompt, ...]:
    """The n prompts: of the named problem, or of held-out ones in an order drawn from the seed."""
    modes = data.draw.partition | data.eval_partition
    chosen: Sequence[Problem]
    if named is not None:
        chosen = [problem for problem in data.problems if problem.id == named]
        if not chosen:
            raise UserError(
                f"--problem {named}: not among the {len(data.problems)} problems of the run; one of the held-out ones is "
                f"{data.held_out[0].id}"
            )
    else:
        chosen = sorted(data.held_out, key=lambda problem: seed_from("sample", seed, problem.id))
    shown = [chosen[i % len(chosen)] for i in range(n)]
    # Problems of the curve are in no partition of the run's.
    return tuple(render(p, mode or modes.get(p.id, FREE), markers, config.eval.seed) for p in shown)


def _verdicts(
    config: RunConfig[Any], data: Data, folder: RunFolder, rollouts: Sequence[Rollout]
) -> tuple[list[Verdict | None], tuple[str, ...]]:
    """The verdict on each rollout, and the sandbox layers that this machine lacks."""
    problems = data.shown([rollout.prompt for rollout in rollouts])
    with (
        open_grader(config, problems, stored_limits(folder)) as grader,
        Progress("grading", total=len(rollouts)) as bar,
    ):
        items = [(rollout.prompt, rollout.text) for rollout in rollouts]
        return [*grader.grade_many(items, progress=lambda done, _: bar.update(done))], grader.missing_layers


def _row(rollout: Rollout, verdict: Verdict | None) -> dict[str, Any]:
    prompt = rollout.prompt
    return {
        "id": rollout.id,
        "problem_id": prompt.problem_id,
        "mode": prompt.mode,
        "markers": prompt.markers,
        "marker": prompt.marker,
        "tokens": len(rollout.completion_ids),
        "finished": rollout.finished,
        "response": rollout.text,
        "verdict": None if verdict is None else asdict(verdict),
    }


def _text(prompt: Prompt, row: dict[str, Any], *, again: bool) -> str:
    """Prompt head (unless it is the one above `again`), completion and verdict of one row."""
    shown = f"{prompt.mode}, marker {prompt.marker!r} ({prompt.markers})" if prompt.marker else prompt.mode
    end = "" if row["finished"] else ", cut at max_new"
    lines = [f"=== {row['id']}: problem {prompt.problem_id}, {shown} ==="]
    lines += ["| the prompt above"] if again else [f"| {line}".rstrip() for line in _head(prompt)]
    lines += [f"--- completion ({row['tokens']} tokens{end}) ---", row["response"].rstrip()]
    if (verdict := row["verdict"]) is not None:
        lines.append(f"--- {_judged(verdict)}")
    return "\n".join([*lines, ""])


def _head(prompt: Prompt) -> list[str]:
    """The first lines of the user turn, and the one with the hint where it comes later."""
    lines = next(content for role, content in reversed(prompt.messages) if role == "user").rstrip().splitlines()
    hint = mode_named(prompt.mode).hint.replace("{marker}", prompt.marker)
    later = [line for line in lines[HEAD:] if hint in line]
    cut = [f"... ({len(lines) - HEAD} more lines)"] if len(lines) > HEAD else []
    return [*lines[:HEAD], *cut, *later]


def _judged(verdict: dict[str, Any]) -> str:
    if verdict["infra"]:
        return "not graded: the grader failed for reasons of this machine"
    solved = "solved" if verdict["gt_correct"] else f"not solved ({verdict['reason']})"
    hacked = "EXPLOITED" if verdict["exploited"] else "channel fired" if verdict["channel"] else "no exploit"
    return f"reward {verdict['reward']:g}, {solved}, {hacked}, label: {verdict['label']}"


def _tally(rows: Sequence[dict[str, Any]], missing: Sequence[str]) -> str:
    """One line over all rows; hacks count where a hint was shown."""
    verdicts = [
        (row["mode"], row["verdict"]) for row in rows if row["verdict"] is not None and not row["verdict"]["infra"]
    ]
    tokens = sum(row["tokens"] for row in rows) / len(rows)
    text = f"{len(rows)} completions, {tokens:.0f} tokens on average"
    if not verdicts:
        return text + "; none graded"
    hinted = [verdict for mode, verdict in verdicts if mode != FREE]
    hacks, solves = sum(v["exploited"] for v in hinted), sum(v["gt_correct"] for _, v in verdicts)
    labels = Counter(verdict["label"] for _, verdict in verdicts)
    text += f"; hack {proportion(hacks, len(hinted))} of the hinted, solve {proportion(solves, len(verdicts))}"
    text += "; " + ", ".join(f"{count} {label}" for label, count in labels.most_common())
    if lost := len(rows) - len(verdicts):
        text += f"; {lost} not graded"
    return text + (f"; graded in a sandbox without {', '.join(missing)}" if missing else "")
