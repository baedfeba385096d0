"""The verbs of `vgrout micro`: train a base model, and measure what a base model does before any RL."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from vgrout.config import RunConfig
from vgrout.env.grader import GRADER_VERSION
from vgrout.final import evaluate_views, view_table
from vgrout.inputs import check_prompt_lengths, load_data, load_policy, open_grader
from vgrout.micro.base import BaseConfig, train_base
from vgrout.micro.store import check_base, require_new, require_recorded, save_base
from vgrout.presets import preset
from vgrout.run.console import say
from vgrout.run.disk import disk_errors, dumps, write_atomic
from vgrout.run.progress import Progress
from vgrout.types import UserError


def train_base_command(
    out: Path = Path("out/micro/base"),
    seed: int = BaseConfig.seed,
    steps: int = BaseConfig.steps,
    batch: int = BaseConfig.batch,
    lr: float = BaseConfig.lr,
    threads: int = BaseConfig.threads,
) -> None:
    """Trains a micro base model from scratch on the supervised corpus, which seeds the hacks that RL amplifies.

    Args:
        out: Folder to make.
        seed: Seed of the weights, the corpus and the tokenizer.
        steps: Optimizer steps.
        batch: Samples of a step.
        lr: Peak learning rate.
        threads: Threads of torch.
    """
    require_new(out)
    config = BaseConfig(seed=seed, steps=steps, batch=batch, lr=lr, threads=threads)
    started = time.monotonic()
    with Progress("training the micro base", total=steps) as bar:
        model, tokenizer, curve = train_base(config, on_step=lambda done, loss: bar.update(done, f"loss {loss:.3f}"))
    with disk_errors(out):
        record = save_base(out, model, tokenizer, config, curve, time.monotonic() - started)
    say(
        f"trained a micro base of {record.parameters:,} parameters in {record.seconds:.0f} s, loss {curve[-1]:.3f} nats a "
        f"token; use it with --model.name {out}, measure it with `vgrout micro rates --model {out}`"
    )


def rates_command(
    model: str = "micro",
    split: Literal["validation", "test"] = "validation",
    samples: int = 2,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Measures a base model's hack and solve rates by mode, under train and eval markers and without a hint.

    Args:
        model: Folder of a base model, or micro for the one that ships.
        split: Held-out tasks to use. Tuning looks at validation only.
        samples: Samples of each prompt at the temperature of training, so that rates are those that RL starts from.
        seed: Seed of the sampling.
        out: JSON file that receives counts and every answer.
    """
    if out is not None:
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            if out.exists():
                raise UserError(f"--out {out} exists already: name a new file")
            with tempfile.TemporaryFile(dir=out.parent):
                pass  # whether the result can be written shows before it is measured
    config = preset("micro", "none")
    config = dataclasses.replace(
        config,
        eval_problems=f"micro:{split}",
        model=dataclasses.replace(config.model, name=model),
        eval=dataclasses.replace(config.eval, samples=samples, seed=seed),
    )
    result: dict[str, Any] = base_rates(config) | {"split": split, "seed": seed}
    say(view_table(result, f"{result['model']} ({result['revision']}) before any RL, {split} split"))
    if out is not None:
        write_atomic(out, dumps(result, "the rates"))
    say(f"{len(result['rows'])} answers graded" + (f"; {out} has them" if out else ""))


def base_rates(config: RunConfig[Any]) -> dict[str, Any]:
    """The evaluation of a configuration's model in its base view, before any update, with what identifies it."""
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, views=("base",)))
    check_base(config.model.name)
    data = load_data(config)
    loaded, policy = load_policy(config)
    require_recorded(loaded)
    check_prompt_lengths(loaded, data.eval_prompts, config, "eval")
    with open_grader(config, data.held_out) as grader:
        result = evaluate_views(config, loaded, policy, grader, data)
    return result | {"model": loaded.name, "revision": loaded.revision, "grader": GRADER_VERSION}
