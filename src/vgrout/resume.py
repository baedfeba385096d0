"""Continuing a run where its newest usable state left it: what may not have changed, and what is cut away."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from loguru import logger
from torch import Tensor, nn

from vgrout.config import RunConfig
from vgrout.curve import CURVE
from vgrout.directions.live import LiveDirection
from vgrout.inputs import Data
from vgrout.policy import Policy
from vgrout.rollout.base import GroupSampler
from vgrout.rollout.pool import PoolSampler
from vgrout.run.columns import Column
from vgrout.run.console import say
from vgrout.run.disk import append, cut, disk_errors, dumps, write_atomic
from vgrout.run.folder import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS, ROLLOUTS, RunFolder
from vgrout.run.logs import intact_size
from vgrout.run.provenance import environment
from vgrout.run.states import STATES, State, keep_only, whole_states
from vgrout.types import UserError

RESUMES: Final = "resumes.jsonl"
FIXED: Final = (
    *("preset", "intervention", "settings", "design", "direction", "pairs", "seed"),
    *("adapter", "extraction", "model.name", "model.revision", "model.dtype", "model.seed"),
)
"""Settings that a state has no meaning without, or that it holds itself."""
ENTRIES: Final = (
    *(
        "config",
        "inputs",
        "parameters",
        "optimizer",
        "intervention",
        "direction",
        "tripwires",
        "hacked",
        "random",
        "logs",
    ),
)
"""What a state holds of a session."""
FIXED_INPUTS: Final = ("base weights", "adapter's basis", "pairs")


@dataclass(frozen=True)
class Resumed:
    """A run to continue: its folder, locked, and the state to continue from; None: it had not saved any."""

    run: RunFolder
    state: State | None
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Settings that are taken over from here on: (before, now)."""

    @property
    def updates(self) -> int:
        return self.state.updates if self.state is not None else 0

    def require_same(self, inputs: Mapping[str, str]) -> None:
        """Raises `UserError` that names what has changed outside the run folder; where settings were overridden, warns."""
        before = self.state.content["inputs"] if self.state is not None else inputs
        if other := sorted(name for name, digest in inputs.items() if before.get(name) != digest):
            text = f"{self.run.path}: the {', '.join(other)} are not those that the run began with"
            if not (self.changed or self._overridden()) or set(other) & set(FIXED_INPUTS):
                raise UserError(f"{text}; put the old ones back")
            logger.warning(text)

    def _overridden(self) -> bool:
        """Whether settings were taken over by a resumption from this very state, which has since been killed."""
        return any(record["overrides"] and record["updates"] == self.updates for record in _records(self.run.path))


def _records(run: Path) -> list[dict[str, Any]]:
    """The resumptions so far; a damaged line is left out with a warning."""
    found = []
    for line in whole_lines(run / RESUMES).splitlines():
        try:
            found.append({"overrides": {}, "updates": None} | json.loads(line))
        except (ValueError, TypeError):
            logger.warning(f"{run / RESUMES}: a damaged line was left out")
    return found


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any], where: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings by dotted name that two configurations (plain data) do not share: (stored, asked)."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(stored.keys() | asked.keys()):
        before, now = stored.get(name), asked.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found |= differences(before, now, f"{where}{name}.")
        elif before != now:
            found[where + name] = (before, now)
    return found


def reopen(run: RunFolder, stored: RunConfig[Any], asked: RunConfig[Any], *, override: bool) -> Resumed:
    """Locks the run and chooses its state. Nothing in the folder is changed yet.

    Raises `UserError` where another process trains the run, where it is finished, where a setting differs and `override`
    was not given, and where no state fits the logs.
    """
    run.lock()
    changed = differences(stored.to_dict(), asked.to_dict())
    listed = {name: f"{name} is {before}, asked for is {now}" for name, (before, now) in changed.items()}
    if fixed := [text for name, text in listed.items() if name.startswith(FIXED)]:
        raise UserError(
            f"{run.path}: {'; '.join(fixed)}: with that it is another run; leave it out, or start a new run"
        )
    if changed and not override:
        raise UserError(
            f"{run.path}: {'; '.join(listed.values())}; leave that out, or take it over from here on with --override"
        )
    status = run.known_status()
    if status.get("state") == "finished" and asked.steps <= stored.steps:
        raise UserError(
            f"{run.path} is finished after {stored.steps} steps; `vgrout eval {run.path}` evaluates it again, and "
            "--override --steps N trains on"
        )
    state = _usable(run, status.get("started"))
    if state is not None:
        changed = _edited(run, state, stored, override=override) | changed
    if state is not None and state.updates > asked.steps:
        raise UserError(f"{run.path}: it has {state.updates} updates already, --steps {asked.steps} asks for fewer")
    return Resumed(run, state, changed)


def _edited(run: RunFolder, state: State, stored: RunConfig[Any], *, override: bool) -> dict[str, tuple[Any, Any]]:
    """Settings of config.json that are neither the state's nor taken over by a resumption; `UserError` without `override`."""
    found = differences(json.loads(state.content["config"]), json.loads(dumps(stored.to_dict(), CONFIG)))
    taken: dict[str, Any] = {}
    for record in _records(run.path):
        taken |= {name: now for name, (_, now) in record["overrides"].items()}
    # By value: a setting that was taken over once may have been edited since.
    edited = {name: values for name, values in found.items() if name not in taken or taken[name] != values[1]}
    listed = "; ".join(f"{name} was {before}, is {now}" for name, (before, now) in edited.items())
    if any(name.startswith(FIXED) for name in edited) or (edited and not override):
        raise UserError(
            f"{run.path / CONFIG} was edited since update {state.updates}: {listed}; put it back"
            + (
                ""
                if any(name.startswith(FIXED) for name in edited)
                else ", or take it over from here on with --override"
            )
        )
    return edited


def _usable(run: RunFolder, owner: str | None) -> State | None:
    """The newest whole state whose rollouts are all there; None where the run was killed before it had saved one.

    Raises `UserError` where finished steps would be lost, because no state or not all their rollouts are left, and at a state
    of another version or another run.
    """
    size, seen = intact_size(run.path / ROLLOUTS), False
    for state in whole_states(run.path, owner):
        seen = True
        _require_entries(state)
        if int(state.content["logs"]["rollouts"]) <= size:
            return state
        logger.warning(
            f"{run.path / ROLLOUTS} is damaged or cut before update {state.updates}; an older state is tried"
        )
    if seen:
        raise UserError(
            f"{run.path / ROLLOUTS} is damaged or ends before the oldest state that is kept, so the rollouts of finished steps "
            "are lost; put the file back, or start a new run"
        )
    if _content(run.path / METRICS) or size:
        raise UserError(
            f"{run.path / STATES} holds no whole state, though steps were finished; put the folder back, or start a new run "
            f"(the checkpoints in {run.path / CHECKPOINTS} can still be evaluated)"
        )
    return None


def _require_entries(state: State) -> None:
    """`UserError` for a state without what a session is restored from, while nothing is changed yet."""
    if missing := sorted(set(ENTRIES) - state.content.keys()):
        raise UserError(
            f"{state.path}: it lacks {', '.join(missing)}, so another version wrote it; resume with the code revision in "
            f"{ENVIRONMENT}, or start a new run"
        )


def log_marks(run: Path) -> dict[str, Any]:
    """How far the logs are at a checkpoint. Metrics and curve are kept whole: they are small, and a table with a hole is no
    table."""
    kept = {name: _content(run / name) for name in (METRICS, CURVE)}
    tensors = {name: torch.tensor(list(text), dtype=torch.uint8) for name, text in kept.items()}
    return {"metrics": tensors[METRICS], "curve": tensors[CURVE], "rollouts": (run / ROLLOUTS).stat().st_size}


def cut_logs(resumed: Resumed, asked: RunConfig[Any], declared: Sequence[Column]) -> None:
    """Takes the logs back to the state and opens them, and records that the run was continued."""
    run, state = resumed.run, resumed.state
    if state is not None:
        logs = state.content["logs"]
        _restore(run.path / METRICS, logs["metrics"])
        _restore(run.path / CURVE, logs["curve"])
        if logs["rollouts"]:
            cut(run.path / ROLLOUTS, int(logs["rollouts"]))
        else:
            write_atomic(run.path / ROLLOUTS, b"")  # the file may be gone
        keep_only(run.path, state)
    elif (run.path / CURVE).exists():
        cut(run.path / CURVE, 0)
    run.resume_at(resumed.updates - 1, declared)
    if (run.path / RESUMES).exists():
        cut(run.path / RESUMES, len(whole_lines(run.path / RESUMES)))
    record = {"time": datetime.now(UTC).isoformat(), "updates": resumed.updates, "overrides": resumed.changed}
    append(run.path / RESUMES, dumps(record | {"environment": environment()}, RESUMES, indent=None).encode() + b"\n")
    if resumed.changed:
        write_atomic(run.path / CONFIG, dumps(asked.to_dict(), CONFIG))
    _warn_of_other_code(run)
    say(f"{run.path}: continued after {resumed.updates} of {asked.steps} updates")


def _restore(path: Path, kept: Tensor) -> None:
    """The file as it was at the state: cut, or, where it is damaged, written anew."""
    whole, found = bytes(kept.tolist()), _content(path)
    if found.startswith(whole):
        if len(found) > len(whole):
            cut(path, len(whole))
        return
    logger.warning(f"{path} is damaged; restored from the checkpoint")
    write_atomic(path, whole)


def whole_lines(path: Path) -> bytes:
    """The file without a torn last line."""
    text = _content(path)
    return text[: text.rfind(b"\n") + 1]


def _content(path: Path) -> bytes:
    """What is in the file; nothing where there is none."""
    if not path.exists():
        return b""
    with disk_errors(path, "read"):
        return path.read_bytes()


def _warn_of_other_code(run: RunFolder) -> None:
    try:
        before, now = run.read_json(ENVIRONMENT), environment()
    except UserError as error:
        logger.warning(str(error))
        return
    for name in ("code", "versions", "python"):
        if before.get(name) != now[name]:
            logger.warning(
                f"{run.path}: {name} was {before.get(name)}, is {now[name]}; the run may differ from an unbroken one"
            )


def fingerprints(policy: Policy, data: Data, sampler: GroupSampler, direction: LiveDirection | None) -> dict[str, str]:
    """Hashes of what a run reads from outside its folder."""
    pairs = [(r.prompt_ids, r.completion_ids) for r in direction.extractor.sides.rows] if direction is not None else []
    found = {
        "base weights": _weights(policy.model),
        "adapter's basis": json.dumps(policy.adapter.identity(), sort_keys=True),
        "training problems": repr((data.train, data.draw.all())),
        "held-out problems": repr((data.held_out, data.eval_prompts)),
        "teacher rows": repr(sorted(sampler.pool.rows().items())) if isinstance(sampler.pool, PoolSampler) else "",
        "pairs": repr(pairs),
    }
    return {name: hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest() for name, text in found.items()}


def _weights(model: nn.Module) -> str:
    """The first values of every frozen tensor: enough to tell models apart, and read in no time."""
    first = (
        (name, p.detach().flatten()[:64].double().tolist())
        for name, p in model.named_parameters()
        if not p.requires_grad
    )
    return repr(sorted(first))
