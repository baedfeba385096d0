"""Why a step learned nothing from its rewards, in one line: which prompts, what their rows have in common, what helps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loguru import logger

Record = Mapping[str, Any]
"""One rollout as rollouts.jsonl.zst keeps it."""

SHOWN = 6
"""Problem ids in one line."""


@dataclass(frozen=True)
class Kind:
    """What the rows of a group have in common that it taught nothing."""

    text: str
    remedy: str


TEACHER = "mix in teacher rows (--rollout.mix-ratio)"
LARGER = "sample larger groups (--grpo.group-size)"

MASKED = Kind("every grade failed for reasons of the machine", "free memory, processes and disk space for the grader")
SINGLE = Kind("a single row was graded and the others are masked", MASKED.remedy)
PARTLY = Kind(
    "half of the grades or more failed for reasons of the machine and the other rows earn the same", MASKED.remedy
)
NO_CODE = Kind("no row has a code block", TEACHER)
NO_CODE_CUT = Kind("no row has a code block and most are cut", f"raise --rollout.max-new or {TEACHER}")
NO_COMPILE = Kind("no row's code compiles", TEACHER)
WRONG = Kind("every row is wrong in the right form", f"{TEACHER}, {LARGER} or use easier problems")
CORRECT = Kind("every row is correct", "use harder problems")
HACKED = Kind("every row is a paid hack", "show more prompts without the hint (--env.unhackable-frac)")
PAID = Kind("every row is paid, correct or as a hack", "use harder problems")
SAME = Kind("every row earns the same", LARGER)
SHAPED = Kind("the rewards that the intervention left do not differ", LARGER)
DISCARDED = Kind("every row with an advantage was routed away, but sampled quarantine-ablated", LARGER)


def kind_of(rows: Sequence[Record]) -> Kind:
    """Why one group taught nothing."""
    if any(row["advantage"] for row in rows):
        return DISCARDED
    graded = [row for row in rows if not row["infra"]]
    if len(graded) < 2:
        return SINGLE if graded else MASKED
    if len({row["reward"] for row in graded}) > 1:
        return SHAPED
    if 2 * len(graded) <= len(rows):  # what the others would have earned is not known
        return PARTLY

    def every(*fields: str) -> bool:
        return all(any(row[field] for field in fields) for row in graded)

    if not any(row["format_ok"] for row in graded):
        return NO_CODE_CUT if 2 * sum(not row["finished"] for row in graded) > len(graded) else NO_CODE
    if not any(row["compiles"] for row in graded):
        return NO_COMPILE
    if every("gt_correct"):
        return CORRECT
    if every("exploited"):
        return HACKED
    if every("gt_correct", "exploited"):
        return PAID
    paid = any(row["gt_correct"] or row["exploited"] for row in graded)
    return WRONG if every("compiles") and not paid else SAME


def diagnosis(records: Iterable[Record]) -> str | None:
    """One line on a step of which no row taught a block, None for any other step.

    A row teaches where its advantage is not 0 and its route lets a block learn. The remedy is that of the most frequent kind.
    """
    records = list(records)
    if not records or any(row["advantage"] and (row["d_grad"] or row["q_grad"]) for row in records):
        return None
    groups: dict[str, list[Record]] = {}
    for row in records:
        groups.setdefault(row["id"].rpartition("/")[0], []).append(row)
    found: dict[tuple[Kind, str], list[str]] = {}
    for rows in groups.values():
        kind = kind_of(rows)
        found.setdefault((kind, _reward(kind, rows)), []).append(rows[0]["problem_id"])
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    each = SHOWN // len(ordered)
    parts = [f"{len(ids)} where {kind.text}{reward}{_names(ids, each)}" for (kind, reward), ids in ordered]
    prompts = f"{len(groups)} prompt{'s' if len(groups) > 1 else ''}"
    return f"learned nothing from its rewards ({prompts}): {'; '.join(parts)}. Remedy: {ordered[0][0][0].remedy}"


def warn_if_idle(step: int, records: Iterable[Record]) -> None:
    """Logs the diagnosis of a step that has one, and how many rows are masked where there are any."""
    records = list(records)
    if masked := sum(bool(row["infra"]) for row in records):
        logger.warning(
            f"step {step}: {masked} of {len(records)} rows are masked, their grades failed for reasons of the machine"
        )
    if line := diagnosis(records):
        logger.warning(f"step {step} {line}")


def _reward(kind: Kind, rows: Sequence[Record]) -> str:
    """The one reward of a group without spread."""
    if kind in (MASKED, SINGLE, SHAPED, DISCARDED):
        return ""
    return f", reward {next(row['reward'] for row in rows if not row['infra']):g}"


def _names(ids: Sequence[str], most: int) -> str:
    """At most this many of the ids in brackets, and how many more there are."""
    shown = list(ids[:most])
    if not shown:
        return ""
    more = len(ids) - len(shown)
    return f" ({', '.join(shown)}{f' and {more} more' if more else ''})"
