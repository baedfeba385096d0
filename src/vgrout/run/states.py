"""Training states: what a run continues from, bit for bit. The checkpoints that ship are other files.

A state file is named after its content, `state_update0010_1a2b3c4d5e6f7a8b.pt`, so that one that is cut short or damaged
does not fit its name and is never taken. The newest two are kept. Beside what the run hands over, a state says its format,
the number of updates, and which run wrote it: a whole file may still be another version's, or another run's.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from loguru import logger

from vgrout.run.disk import disk_errors, write_atomic
from vgrout.types import UserError

STATES: Final = "states"
KEPT: Final = 2
FORMAT: Final = "vgrout-state-1"
"""Grows where a state's entries, or what is in them, come to mean something else."""
_NAME = re.compile(r"state_update(\d+)_([0-9a-f]{16})\.pt")
_CHUNK = 1 << 22


@dataclass(frozen=True)
class State:
    """A state as it was saved, after so many updates."""

    updates: int
    path: Path
    content: dict[str, Any]


def save_state(run: Path, updates: int, content: Mapping[str, Any], *, owner: str | None = None) -> Path:
    """Writes the state after `updates` updates (tensors and plain data), then removes all but the newest two.

    `owner` tells the run from others; None: unknown.

    Raises `UserError` where the disk does not take it; the states before it are still there then.
    """
    folder = run / STATES
    # In memory first: torch turns a full disk into an error of its own that does not name it.
    raw = io.BytesIO()
    torch.save({"format": FORMAT, "updates": updates, "owner": owner, **content}, raw)
    if not _listed(run):
        _require_loadable(raw)
    digest = hashlib.sha256(raw.getbuffer()).hexdigest()[:16]
    final = folder / f"state_update{updates:04d}_{digest}.pt"
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    write_atomic(final, raw.getbuffer())
    others = [path for _, path in _listed(run) if path != final]
    for old in others[KEPT - 1 :]:
        old.unlink(missing_ok=True)
    return final


def _require_loadable(raw: io.BytesIO) -> None:
    """`UserError` for what a state may not hold, while nothing is lost yet."""
    raw.seek(0)
    try:
        torch.load(raw, weights_only=True)
    except pickle.UnpicklingError as error:
        what = next(
            (line.strip() for line in str(error).splitlines() if "Unsupported" in line or "global" in line), str(error)
        )
        raise UserError(
            "the run's state could not be read back: state_dict of the intervention may hold tensors, numbers, text, lists, "
            f"tuples and dicts only ({what})"
        ) from error


def whole_states(run: Path, owner: str | None = None) -> Iterator[State]:
    """The states that can be read, newest first; each that is damaged is named in a warning.

    Raises `UserError` at one of another format, and at one that a run with another `owner` wrote.
    """
    for updates, path in _listed(run):
        if _digest(path) != path.stem.rpartition("_")[2]:
            logger.warning(f"{path}: incomplete or damaged, so it is left out")
            continue
        content = _content(path)
        if content["updates"] != updates:
            raise UserError(f"{path}: it holds the state after {content['updates']} updates; give it its own name back")
        if None not in (owner, content["owner"]) and owner != content["owner"]:
            raise UserError(
                f"{path}: another run wrote it (begun {content['owner']}, this one {owner}); remove it, and put this run's "
                "own states back"
            )
        yield State(updates, path, content)


def _content(path: Path) -> dict[str, Any]:
    """What a whole state holds; `UserError` where this version cannot read it."""
    try:
        content = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{path}: torch {torch.__version__} cannot load it ({str(error).splitlines()[0]}); resume with the versions in "
            "environment.json"
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path}: a state of the format {found or 'before ' + FORMAT}, expected {FORMAT}; resume with the code revision in "
            "environment.json, or start a new run"
        )
    return content


def keep_only(run: Path, chosen: State) -> None:
    """Removes what is newer than the state that a run continues from, and what is damaged: it would pass for the newest."""
    for updates, path in _listed(run):
        if path != chosen.path and (updates >= chosen.updates or _digest(path) != path.stem.rpartition("_")[2]):
            path.unlink(missing_ok=True)


def newest_update(run: Path) -> int | None:
    """Updates of the newest state by name, without reading it; None where there is none."""
    return next((updates for updates, _ in _listed(run)), None)


def _listed(run: Path) -> list[tuple[int, Path]]:
    """(updates, file), newest first. Of two with as many updates, the one that was written last."""
    found = []
    for path in (run / STATES).glob("state_update*.pt"):
        if match := _NAME.fullmatch(path.name):
            found.append((int(match[1]), path.stat().st_mtime_ns, path))
    return [(updates, path) for updates, _, path in sorted(found, reverse=True)]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with disk_errors(path, "read"), path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:16]
