"""What the step benchmark says of its figures: seconds and shares by phase, and each limit with ok or over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from _bench_phases import PAIRS, PHASES

Times = list[dict[str, dict[str, float]]]
"""Per round, per system, per phase (and `step`): seconds."""
STANDARD = {"prompts": 4, "group_size": 8, "prompt_tokens": 200, "max_new": 96, "dtype": "fp32"}
"""The work that the limits are stated for, by the names of the options."""


@dataclass(frozen=True)
class Limit:
    """A step of `system` may cost at most `high` times, and should cost at least `low` times, one of `reference`."""

    system: str
    reference: str
    high: float
    low: float = 0.0
    size: str | None = None
    """None: at every size."""


LIMITS = (
    Limit("trl", "floor", 1.5, 1.25, "a"),
    Limit("trl", "floor", 1.35, 1.1, "b"),
    Limit("none", "floor", 1.05),
    Limit("none", "trl", 1.0),
    *(Limit(name, "none", 1.05) for name in ("none_full", "erase", "penalty", "screening")),
    *(Limit(name, "none", 1.2) for name in ("absorb", "label_route")),
    *(Limit(name, "none", 1.25) for name in ("routeV", "routeA", "moe", "advantage_mod")),
    Limit("erase@delta_s", "none@delta_s", 1.05),
)
"""The range of trl / floor says whether the floor is credible: a plain loop is faster than a general trainer, but not by much."""


def ratios(times: Times, system: str, reference: str) -> list[float]:
    """Of the step, in each round."""
    return [t[system]["step"] / t[reference]["step"] for t in times]


def medians(times: Times) -> dict[str, dict[str, float]]:
    """Per system and phase: median seconds over the rounds."""
    return {name: {phase: median(t[name][phase] for t in times) for phase in times[0][name]} for name in times[0]}


def seconds_table(times: Times) -> str:
    """Median seconds of the phases, and median ratios of the step to the floor's and to that of `none`."""
    references = [name for name in ("floor", "none") if name in times[0]]
    head = ["system", *PHASES, "step", f"{PAIRS} (apart)", *(f"step / {name}" for name in references)]
    rows = [
        [
            name,
            *(_cell(seconds[phase]) for phase in (*PHASES, "step", PAIRS)),
            *(f"{median(ratios(times, name, reference)):.2f}" for reference in references),
        ]
        for name, seconds in medians(times).items()
    ]
    return markdown([head, *rows])


def shares_table(times: Times) -> str:
    """The share of each phase in the step: medians of the shares within a round, so that they need not add up to 100."""

    def share(name: str) -> Callable[[str], str]:
        return lambda phase: f"{100 * median(t[name][phase] / t[name]['step'] for t in times):.0f}%"

    return markdown([["system", *PHASES], *([name, *map(share(name), PHASES)] for name in times[0])])


def limit_lines(times: Times, size: str, *, standard: bool) -> list[str]:
    """One line for each limit whose two systems were timed, with the spread over the rounds.

    The limits are stated for the standard work; at any other work the ratio is shown without a verdict.
    """
    lines = []
    for limit in LIMITS:
        if {limit.system, limit.reference} <= times[0].keys() and limit.size in (None, size):
            found = ratios(times, limit.system, limit.reference)
            verdict = _verdict(limit, median(found)) if standard else "no limit is stated for this work"
            spread = f"rounds {min(found):.2f} to {max(found):.2f}"
            lines.append(f"size {size}: {limit.system} {median(found):.2f}x {limit.reference}, {verdict} ({spread})")
    return lines


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table whose columns are aligned; the first row is its head."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("| " + _joined(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows)


def _joined(cells: Iterable[str]) -> str:
    return " | ".join(cells)


def _cell(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds else "-"


def _verdict(limit: Limit, found: float) -> str:
    if not limit.low:
        return f"limit {limit.high}: {'ok' if found <= limit.high else 'over'}"
    where = "under" if found < limit.low else "over" if found > limit.high else "ok"
    return f"range {limit.low} to {limit.high}: {where}"
