"""What the gates on run folders, logs and the console share: a temporary folder, a small run, an expected error."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vgrout.run.declared import columns
from vgrout.run.folder import RunFolder
from vgrout.types import StepRow

DECLARED = columns(["run_tests", "gt_only"])
CONFIG = {"preset": "smoke", "seed": 3, "out": Path("out"), "lr": 1e-3}


@contextmanager
def folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def create(
    root: Path, *, name: str | None = None, config: Mapping = CONFIG, sandbox: Mapping | None = None
) -> RunFolder:
    return RunFolder.create(root, config, DECLARED, label="smoke_absorb_seed3", name=name, sandbox=sandbox)


def row(step: int, **changed: float | None) -> StepRow:
    values: dict[str, float | int | None] = {c.name: None if c.undefined else 1.0 for c in DECLARED if c.name != "step"}
    return StepRow(step, {**values, **changed})


def refused(kind: type[Exception], says: str, action: Callable[[], object]) -> str:
    """The message of the expected error: one line that contains `says`."""
    try:
        action()
    except kind as error:
        assert "\n" not in str(error) and says in str(error), f"expected {says!r} in one line, got {error}"
        return str(error)
    raise AssertionError(f"no {kind.__name__} ({says})")
