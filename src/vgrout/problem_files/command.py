"""The verbs of `vgrout data`, as functions whose arguments are the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vgrout.env.convert import convert_leetcode_dataset, verified_by_grader
from vgrout.problem_files.benchmark import BASE_URL
from vgrout.problem_files.download import Patience
from vgrout.problem_files.fetch import fetch, parse_pins
from vgrout.run.console import say
from vgrout.run.progress import Progress
from vgrout.types import Markers, Problem

Role = Literal["train", "test", "holdout"]


def fetch_command(
    to: Path = Path("data"),
    files: tuple[Role, ...] = ("train", "test", "holdout"),
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    base_url: str = BASE_URL,
    sha256: tuple[str, ...] = (),
    timeout: float = Patience.seconds,
    attempts: int = Patience.attempts,
) -> None:
    """Fetches the public benchmark's files, checks them, and puts them where the presets lite, fast and full look.

    Args:
        to: Folder that receives them; presets look in `data` below the folder that a run is started in.
        files: Which of them.
        source: Folder that they were carried to by hand, plain or .gz; nothing is downloaded then.
        base_url: Address of the folder that holds them, for a mirror or another revision.
        sha256: What a file's sha256 must be, as ROLE=HEX; counts before what is known here.
        timeout: Seconds to wait for a connection and for each piece of a file.
        attempts: How often a broken download is tried.
    """
    fetch(
        to,
        files,
        source=source,
        base_url=base_url,
        pins=parse_pins(sha256),
        patience=Patience(timeout, attempts),
    )


def check_command(
    files: Annotated[tuple[str, ...], tyro.conf.Positional],
    solutions: bool = False,
    workers: int | None = None,
    sandbox_allow_missing: tuple[str, ...] = (),
) -> None:
    """Checks problem files row by row and against each other; exit code 1 where anything is wrong.

    Args:
        files: Problem files, or sets that ship (builtin, micro, micro:validation, micro:test).
        solutions: Run every canonical solution in the grader as well.
        workers: Grader processes; none: one per core.
        sandbox_allow_missing: Sandbox layers that this machine may lack.
    """
    from vgrout.problem_files.check import check_files  # torch is imported with it

    report, good = check_files(files, solutions=solutions, workers=workers, allow_missing=sandbox_allow_missing)
    say(report)
    if not good:
        sys.exit(1)


def show_command(
    name: Annotated[str, tyro.conf.Positional],
    identity: Annotated[str | None, tyro.conf.arg(name="id")] = None,
    mode: str | None = None,
    markers: Markers = "train",
    form: Annotated[Literal["prompt", "row"], tyro.conf.arg(name="as")] = "prompt",
    seed: int = 0,
    limit: int = 20,
) -> None:
    """Shows a set of problems as a table, or one problem as the model sees it.

    Args:
        name: A file, a set that ships (builtin, micro, micro:validation, micro:test), or pairs:SELECTION.
        identity: The problem to show, or the heading of a pair.
        mode: Loophole mode of its prompt, or gt_only; none: the one that a run with this seed gives it.
        markers: Family of the marker that the hint discloses.
        form: As prompt or as row of a problem file.
        seed: Seed of the marker and of the division into modes.
        limit: Rows of a table.
    """
    from vgrout.problem_files.show import show  # torch is imported with it

    show(name, identity, mode, markers, form, seed, limit)


def convert_command(
    source: Annotated[Path, tyro.conf.Positional],
    out: Path,
    limit: int | None = None,
    verify: bool = True,
    workers: int | None = None,
    sandbox_allow_missing: tuple[str, ...] = (),
) -> None:
    """Converts LeetCodeDataset rows (v0.2 or v0.3) to problem rows; refused rows are listed with their reason.

    Args:
        source: LeetCodeDataset .jsonl or .jsonl.gz file.
        out: Problem file to write.
        limit: Convert only the first rows.
        verify: Run every canonical solution in the grader, and refuse the rows whose own solution fails.
        workers: Grader processes; none: one per core.
        sandbox_allow_missing: Sandbox layers that this machine may lack.
    """
    with Progress("converting") as bar:

        def failing(problems: Sequence[Problem]) -> dict[str, str]:
            bar.phase("running the canonical solutions", len(problems))
            return verified_by_grader(
                problems,
                workers=workers,
                allow_missing=sandbox_allow_missing,
                progress=lambda done, total: bar.update(done),
            )

        report = convert_leetcode_dataset(
            source, out, limit=limit, progress=bar.update, verify=failing if verify else None
        )
    for row, reason in report.refused:
        print(f"refused {row}: {reason}")
    ran = "every canonical solution passes the grader" if report.verified else "canonical solutions were not run"
    print(
        f"{report.converted} problems with {report.asserts} asserts, {len(report.refused)} rows refused; {ran}: {out}"
    )


VERBS = {"fetch": fetch_command, "check": check_command, "show": show_command, "convert": convert_command}
