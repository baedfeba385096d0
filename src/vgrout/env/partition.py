"""The partition of problems over loophole modes: every problem has one mode, sizes differ by at most one, stored.

It is stored with the run, since a resumed or evaluated run must show each problem under the mode it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vgrout.env.files import written_atomically
from vgrout.env.modes import LOOPHOLES, mode_named
from vgrout.env.rows import shown
from vgrout.types import UserError


def make_partition(problem_ids: Iterable[str], modes: Sequence[str] = LOOPHOLES, seed: int = 0) -> dict[str, str]:
    """{problem id: mode}: ids in an order drawn by (seed, id), dealt to the modes in turn.

    Depends on the set of ids, not on their order. Raises UserError for no modes, an unknown or repeated mode, and
    repeated ids.
    """
    ids = list(problem_ids)
    for mode in modes:
        mode_named(mode)
    if not modes or len(set(modes)) != len(modes):
        raise UserError(f"partition: expected at least one mode and none twice, got {', '.join(modes) or 'none'}")
    if len(set(ids)) != len(ids):
        repeated = sorted({i for i in ids if ids.count(i) > 1})
        raise UserError(f"partition: expected each problem once, but these are repeated: {', '.join(repeated[:5])}")
    order = sorted(ids, key=lambda identity: hashlib.sha256(f"partition\n{seed}\n{identity}".encode()).digest())
    return {identity: modes[position % len(modes)] for position, identity in enumerate(order)}


def save_partition(path: str | Path, partition: dict[str, str], *, modes: Sequence[str], seed: int) -> None:
    """Write the partition as JSON with its seed, its modes and a hash of its ids."""
    record = {"seed": seed, "modes": list(modes), "ids_sha256": ids_hash(partition), "mode_of": partition}
    with written_atomically(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def load_partition(path: str | Path, problem_ids: Iterable[str]) -> dict[str, str]:
    """The stored partition, which must cover exactly `problem_ids`; UserError says what is missing or too many."""
    path = Path(path)
    partition = _mode_of(path)
    wanted = set(problem_ids)
    missing, extra = sorted(wanted - partition.keys()), sorted(partition.keys() - wanted)
    if missing or extra:
        differs = f"lacks {len(missing)} ({shown(', '.join(missing)) if missing else 'none'})"
        differs += f" and has {len(extra)} others ({shown(', '.join(extra)) if extra else 'none'})"
        raise UserError(f"partition {path}: expected exactly the {len(wanted)} given problems, but it {differs}")
    return partition


def ids_hash(problem_ids: Iterable[str]) -> str:
    """sha256 of the sorted ids: two partitions with the same hash cover the same problems."""
    return hashlib.sha256("\n".join(sorted(problem_ids)).encode()).hexdigest()


def _mode_of(path: Path) -> dict[str, str]:
    remedy = "make a new one by starting a new run"
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
        partition, digest = record["mode_of"], record["ids_sha256"]
    except FileNotFoundError as error:
        raise UserError(f"partition {path}: no such file; {remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"partition {path}: expected JSON with 'mode_of' and 'ids_sha256' ({error}); {remedy}"
        ) from error
    if not isinstance(partition, dict) or digest != ids_hash(partition):
        raise UserError(f"partition {path}: its ids do not match its hash, so it was edited; {remedy}")
    for mode in partition.values():
        mode_named(mode)
    return partition
