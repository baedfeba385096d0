"""The flat folder that a child with files may write to, as the trusted side sees it."""

from __future__ import annotations

import os
from pathlib import Path

from vgrout.env.sandbox import Limits


def folder_is_over(folder: Path, limits: Limits) -> bool:
    """Whether a scratch folder holds more files than allowed."""
    with os.scandir(folder) as entries:
        return sum(1 for _ in entries) > limits.files


def remove_folder(folder: Path) -> None:
    """Remove a scratch folder; it is flat, because nothing but plain files can be made in it."""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
