"""What a run folder holds of the run's own settings and limits, read back and checked."""

from __future__ import annotations

from typing import Any

from vgrout.config import RunConfig, from_dict
from vgrout.env.grader import CPU_LIMITS
from vgrout.run.folder import CONFIG, LIMITS, RunFolder
from vgrout.types import UserError


def stored_config(run: RunFolder) -> RunConfig[Any]:
    """The run's configuration. `UserError` names the file and the setting that cannot be used."""
    stored = run.read_json(CONFIG)
    try:
        return from_dict(stored)
    except UserError as error:
        raise UserError(f"{run.path / CONFIG}: {error}") from error


def stored_limits(run: RunFolder) -> dict[str, float]:
    """CPU seconds by problem id, as the run measured them: the same answer must not fail on a slower day."""
    limits = run.read_json(LIMITS)
    for problem, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit <= CPU_LIMITS[-1]:
            raise UserError(
                f"{run.path / LIMITS}: problem {problem} has the limit {limit!r}, expected seconds up to {CPU_LIMITS[-1]}; "
                "the file was damaged or edited; where it is removed, limits are measured anew"
            )
    return {problem: float(limit) for problem, limit in limits.items()}
