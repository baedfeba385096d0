"""Arms of a study in the micro world: an intervention with its settings, run with several seeds."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vgrout.config import MAX_INIT_SEED, RunConfig
from vgrout.env.modes import LOOPHOLES
from vgrout.interventions import intervention_class
from vgrout.presets import preset, with_options
from vgrout.types import UserError


@dataclass(frozen=True)
class Arm:
    """One line of a study's table."""

    name: str
    """Used in run names, so without blanks."""
    intervention: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the intervention."""
    grpo: dict[str, Any] = field(default_factory=dict)
    """Of the update, such as the advantage baseline."""
    adapter: str | None = None
    """None: lora2r, so that arms share an adapter, or the design's own."""
    design: str | None = None
    """A published design by name; its settings stand in for the preset's."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any other setting by its dotted name; {seed} in a text stands for the run's seed."""
    unseen: str = ""
    """Loophole mode that its pairs leave out, where that is what the arm is for."""

    @property
    def upper_bound(self) -> bool:
        return intervention_class(self.intervention).oracle

    @property
    def label(self) -> str:
        """The name with the mark that every output of an upper bound carries."""
        return f"{self.name} *" if self.upper_bound else self.name

    def run_names(self, seeds: Iterable[int]) -> list[str]:
        """Names of its runs, in the order of the seeds."""
        return [f"{self.name}-seed{seed}" for seed in seeds]


NONE = Arm("none", "none", options={"extraction.refresh_every": 0})
ROUTES = tuple(
    Arm(f"label_route-{clean}-{baseline}", "label_route", {"clean": clean, **mask}, {"advantage_baseline": baseline})
    for clean, mask in (("detached", {}), ("zeroed", {"mask": "activation"}))
    for baseline in ("block", "group")
)
"""True labels choose the route: both clean routes, both advantage baselines."""

DEMO = (NONE, Arm("absorb", "absorb"), *ROUTES[:3])
"""The default route, and beside it the other baseline and the other clean route; both together are in `every.EVERY`."""
QUICK = (NONE, ROUTES[0])


def select(arms: Iterable[Arm], patterns: Sequence[str]) -> tuple[Arm, ...]:
    """The arms whose name is one of the patterns (`routeV-*`), in their own order. `UserError` for a pattern of no arm."""
    known = tuple(arms)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(arm.name, pattern) for arm in known):
            names = ", ".join(arm.name for arm in known)
            raise UserError(f"--arms {pattern}: no arm of this name or pattern; there are {names}")
    return tuple(arm for arm in known if any(fnmatch.fnmatchcase(arm.name, pattern) for pattern in patterns))


def configurations(
    arms: Iterable[Arm],
    seeds: Sequence[int],
    out: Path,
    *,
    problems: str,
    model: str,
    modes: Sequence[str] | None = None,
    samples: int = 1,
    controls: bool = False,
    **changes: Any,
) -> list[RunConfig[Any]]:
    """One run per arm and seed, in the order in which they start: all arms of the first seed, then of the next, the last
    arm first. The routed arms come late and are the slow ones; a slow run that starts last leaves cores idle.

    Only the views that an adapter changes are evaluated: the base's is the same for all. `modes` are the loopholes of the
    training prompts (none: all); held-out prompts show all of them. `controls` asks for the other ablations of routed arms.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: expected at least one, and none twice")
    if not all(0 <= seed <= MAX_INIT_SEED for seed in seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: expected whole numbers from 0 to {MAX_INIT_SEED}")
    found = []
    for seed in seeds:
        for arm in reversed(tuple(arms)):
            adapter = arm.adapter or (None if arm.design else "lora2r")
            config = with_options(preset("micro", arm.intervention, adapter, arm.design), arm.options, seed)
            found.append(
                dataclasses.replace(
                    config,
                    name=arm.run_names([seed])[0],
                    out=out,
                    seed=seed,
                    allow_oracle=arm.upper_bound,
                    eval_problems=problems,
                    model=dataclasses.replace(config.model, name=model),
                    settings=dataclasses.replace(config.settings, **arm.settings),
                    grpo=dataclasses.replace(config.grpo, **arm.grpo),
                    adapter=dataclasses.replace(config.adapter, init_seed=seed),
                    env=dataclasses.replace(config.env, modes=tuple(modes) if modes is not None else config.env.modes),
                    eval=dataclasses.replace(
                        config.eval, views=("full", "deploy"), modes=LOOPHOLES, samples=samples, controls=controls
                    ),
                    # An arm that goes wrong is a result, and its table says that it has collapsed.
                    tripwires=dataclasses.replace(config.tripwires, stop=False),
                    **changes,
                )
            )
    return found
