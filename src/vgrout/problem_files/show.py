"""`vgrout data show`: a set of problems as a table, one problem as the model sees it, or contrastive pairs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.text import Text

from vgrout.directions.pairs import Pair, load_pairs
from vgrout.env.modes import LOOPHOLES, PLAIN_PHRASE, mode_named
from vgrout.env.partition import make_partition
from vgrout.env.prompts import render
from vgrout.problem_files.named import as_row, named_parts
from vgrout.types import Markers, Problem, UserError

PAIRS = "pairs:"
_HEAD = ("id", "difficulty", "asserts", "method", "statement")


def show(
    name: str,
    identity: str | None = None,
    mode: str | None = None,
    markers: Markers = "train",
    form: Literal["prompt", "row"] = "prompt",
    seed: int = 0,
    limit: int = 20,
) -> None:
    """Prints a set or file, one of its problems, or the pairs of a `pairs:SELECTION`.

    Without `identity` a table of the first `limit` problems with counts; a `mode` then shows the first problem. With
    one that problem's chat turns under `mode` (none: the one that a run with this seed gives it), or its row.
    """
    if limit < 1:
        raise UserError(f"--limit {limit}: expected at least 1")
    if name.startswith(PAIRS):
        if mode is not None or form == "row":
            raise UserError(
                "vgrout data show pairs:... has no --mode and no --as row; its pairs are shown with --id HEADING"
            )
        _show_pairs(load_pairs(name.removeprefix(PAIRS), "data show pairs:"), identity, limit)
        return
    parts = named_parts(name)
    problems = [problem for part in parts.values() for problem in part]
    if identity is None and mode is None and form == "prompt":
        print(_overview(name, parts, limit, seed))
        return
    problem = _chosen(problems, identity, name)
    if form == "row":
        print(json.dumps(as_row(problem), indent=2, ensure_ascii=False))
        return
    part = next(part for part in parts.values() if problem in part)
    _show_prompt(problem, mode or make_partition([p.id for p in part], LOOPHOLES, seed)[problem.id], markers, seed)


def _chosen(problems: Sequence[Problem], identity: str | None, name: str) -> Problem:
    if identity is None:
        return problems[0]
    for problem in problems:
        if problem.id == identity:
            return problem
    some = ", ".join(problem.id for problem in problems[:5])
    raise UserError(f"--id {identity}: not among the {len(problems)} problems of {name} ({some}, ...)")


def _overview(name: str, parts: dict[str, tuple[Problem, ...]], limit: int, seed: int) -> str:
    """Counts of each part, then its first problems."""
    lines = []
    for part, problems in parts.items():
        asserts = [len(problem.asserts) for problem in problems]
        levels = Counter(problem.difficulty for problem in problems)
        modes = Counter(make_partition([p.id for p in problems], LOOPHOLES, seed).values())
        lines += [
            f"{name}{'' if part == 'file' else f', {part}'}: {len(problems)} problems "
            f"({', '.join(f'{count} {level}' for level, count in sorted(levels.items()))}), "
            f"{sum(asserts):,} asserts, {min(asserts)} to {max(asserts)} a problem",
            f"loophole modes in a run with seed {seed}: " + ", ".join(f"{modes[mode]} {mode}" for mode in LOOPHOLES),
        ]
        shown = [_row(problem) for problem in problems[:limit]]
        widths = [max(len(row[i]) for row in (_HEAD, *shown)) for i in range(len(_HEAD))]
        for row in (_HEAD, *shown):
            cells = (text.rjust(w) if i == 2 else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths)))
            lines.append(("  " + "  ".join(cells)).rstrip())
        if len(problems) > limit:
            lines.append(f"  ... {len(problems) - limit} more (--limit {len(problems)} shows all)")
        lines.append("")
    lines.append(f"one of them as the model sees it: vgrout data show {name} --id {next(iter(parts.values()))[0].id}")
    return "\n".join(lines)


def _row(problem: Problem) -> tuple[str, ...]:
    text = " ".join(problem.messages[-1][1].removeprefix("PROBLEM:").split())
    method = problem.func_name.removeprefix("Solution().")
    return (
        problem.id,
        problem.difficulty,
        str(len(problem.asserts)),
        method,
        text[:70] + ("..." if len(text) > 70 else ""),
    )


def _show_prompt(problem: Problem, mode: str, markers: Markers, seed: int) -> None:
    """The chat turns; on a terminal the hint stands out, and everywhere it is named above them."""
    prompt = render(problem, mode, markers, seed)
    hint = mode_named(mode).hint.replace("{marker}", prompt.marker)
    shown = f"marker {prompt.marker!r} of the {markers} family" if prompt.marker else "no loophole"
    console = _console()
    console.print(f"problem {problem.id} ({problem.difficulty}, {len(problem.asserts)} asserts), mode {mode}, {shown}")
    console.print(
        "hint: " + (hint if hint != PLAIN_PHRASE else f"none ({PLAIN_PHRASE!r} as in every row)"), style="yellow"
    )
    for role, content in prompt.messages:
        console.print(f"--- {role} ---", style="bold")
        text = Text(content)
        if role == "user":
            text.highlight_words([hint], style="bold black on yellow")
        console.print(text)
    console.print("--- assistant ---", style="bold")


def _show_pairs(pairs: Sequence[Pair], heading: str | None, limit: int) -> None:
    console = _console()
    if heading is None:
        families = Counter(pair.family for pair in pairs)
        console.print(f"{len(pairs)} pairs: {', '.join(f'{count} {family}' for family, count in families.items())}")
        width = max(len(pair.heading) for pair in pairs[:limit])
        for pair in pairs[:limit]:
            lengths = f"hack {len(pair.hack):4}, clean {len(pair.clean):4} characters"
            console.print(f"  {pair.heading:{width}}  {lengths}  {', '.join(pair.tags)}")
        if len(pairs) > limit:
            console.print(f"  ... {len(pairs) - limit} more (--limit {len(pairs)} shows all)")
        return
    found = [pair for pair in pairs if pair.heading == heading]
    if not found:
        raise UserError(f"--id {heading}: no such pair; one is called {pairs[0].heading}")
    for title, text in (*found[0].messages, ("hack", found[0].hack), ("clean", found[0].clean)):
        console.print(f"--- {title} ---", style="bold")
        console.print(Text(text))


def _console() -> Console:
    """Prints text as it is: no markup, no wrapping, colours on a terminal only."""
    return Console(file=sys.stdout, markup=False, highlight=False, soft_wrap=True, emoji=False)
