"""Writes docs/metrics.md from the declared columns. `scripts/verify_columns.py` fails where the page is stale."""

from __future__ import annotations

from pathlib import Path

from vgrout.env.modes import STANDARD
from vgrout.run.declared import sections
from vgrout.run.disk import write_atomic
from vgrout.run.page import metrics_page
from vgrout.run.table import SHOWN

PAGE = Path(__file__).parents[1] / "docs/metrics.md"


def page() -> str:
    """The page as it should be."""
    return metrics_page(sections(STANDARD), SHOWN)


if __name__ == "__main__":
    write_atomic(PAGE, page())
    print(f"wrote {PAGE}")
