"""docs/metrics.md, made from the declared columns so that the page and the runs cannot disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vgrout.run.columns import Column

RENEW = "python scripts/make_metrics_page.py"

_HEAD = f"""# Metrics

Every step of a run writes one line to `metrics.jsonl`, with all the columns below in this order. This page is made from the table \
in `src/vgrout/run/declared.py`: change that, then run `{RENEW}`. Each run folder holds the table that it was written with, in \
`columns.json`.

- **A value that is undefined is `null`, never 0.** A hack rate of a step without teacher rows is not a hack rate of 0. Where a \
column is never undefined, the last cell is empty.
- **A value out of its range stops the run.** Square brackets hold their end, round ones do not. `+- x` is how far rounding may \
carry a value past an end.
- *Heading* is what the step table of the log calls a column. Only those in bold print there are shown.
- *Student* rows are the policy's own, *teacher* rows come from a pool. A *row* is one rollout, a *group* holds the rows of one \
prompt. A *hack* was paid for an answer that the strict oracle finds wrong.
- Shares and AUROCs of ground truth are measurements: nothing that trains reads them.

A step that learned nothing from its rewards is said in one line of the log: how many prompts, what the rows of each had in common, \
and what helps.
"""

_TABLE = "| column | heading | unit | range | meaning | undefined where |\n|---|---|---|---|---|---|\n"


def metrics_page(sections: Mapping[str, Sequence[Column]], shown: Sequence[str]) -> str:
    """The page in Markdown; headings of the columns `shown` in the step table are in bold print."""
    parts = [_HEAD]
    for title, declared in sections.items():
        lines = "".join(_line(column, column.name in shown) for column in declared)
        parts.append(f"\n## {title}\n{_TABLE}{lines}")
    return "".join(parts)


def _line(column: Column, shown: bool) -> str:
    heading = f"**{column.heading}**" if shown else column.heading
    rounding = f" +- {column.rounding:g}" if column.rounding else ""
    unit = "" if column.unit == "1" else column.unit
    cells = (f"`{column.name}`", heading, unit, column.range + rounding, column.meaning, column.undefined)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
