"""The public benchmark's files: where they are, and what is known of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vgrout.env.problems import assert_disjoint, load_problems
from vgrout.types import Problem, UserError

REPOSITORY = "ariahw/rl-rewardhacking"
REVISION = "73695ff5533b566f7cc99b02bfeb9168936e740d"
"""A commit, because later ones move the files: the same command fetches the same bytes next year."""
BASE_URL = f"https://raw.githubusercontent.com/{REPOSITORY}/{REVISION}/results/data"


@dataclass(frozen=True)
class BenchmarkFile:
    """One file of the benchmark and what is known of it."""

    role: str
    name: str
    rows: int
    purpose: str
    sha256: str | None = None
    """Of the file as it is published; none where no copy was at hand to compute it from."""


FILES: dict[str, BenchmarkFile] = {
    file.role: file
    for file in (
        BenchmarkFile(
            "train", "leetcode_train_medhard_filtered.jsonl", 992, "training problems of lite, fast and full"
        ),
        BenchmarkFile(
            "test",
            "leetcode_test_medhard.jsonl",
            119,
            "their held-out problems",
            "5bb4d91fcdbd3a3fc2c149570783edd41cf2f85a1f2293ec7c9ff5bae7185cbd",
        ),
        BenchmarkFile("holdout", "leetcode_train_medhard_holdout.jsonl", 353, "easier problems; no preset uses them"),
    )
}


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verified(path: Path, file: BenchmarkFile, pinned: str | None = None) -> tuple[tuple[Problem, ...], str]:
    """(problems, sha256) of a file that is to be `file`. `pinned` is the user's own sha256, which counts before ours.

    Raises `UserError` with the reason where it is another file: its sha256, a row that does not load, their number.
    """
    digest = sha256_of(path)
    expected = pinned or file.sha256
    if expected is not None and digest != expected:
        whose = "as pinned with --sha256" if pinned else "of the published file"
        raise UserError(f"its sha256 is {digest}, expected {expected}, {whose}")
    problems = load_problems(path)
    if len(problems) != file.rows:
        raise UserError(f"it has {len(problems)} rows, expected {file.rows}")
    return problems, digest


def require_disjoint(problems: tuple[Problem, ...], file: BenchmarkFile, folder: Path) -> None:
    """`UserError` where the training file and the held-out one beside it share problems."""
    other = {"train": "test", "test": "train"}.get(file.role)
    if other is not None and (beside := folder / FILES[other].name).is_file():
        assert_disjoint(**{file.role: problems, other: load_problems(beside)})
