"""The flat folder that a child with files may write to, as the trusted side sees it, and the grader's folder around it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from vgrout.env.sandbox import Limits
from vgrout.types import UserError

PREFIX = "vgrout-grader-"
YOUNG_S = 60.0
"""Between its making and its lock a folder belongs to nobody: younger ones are left alone."""


class ScratchRoot:
    """A grader's folder in the temporary directory, locked while the grader lives.

    A grader that was killed cannot remove its own, so whoever comes next removes those that nobody holds.
    """

    def __init__(self) -> None:
        """UserError where no folder can be made."""
        try:
            _remove_abandoned(Path(tempfile.gettempdir()))
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._held = _lock(self.path)
        except OSError as error:
            raise UserError(
                f"no folder for scratch files can be made ({error}); set TMPDIR to one that can be written"
            ) from error

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _remove_abandoned(parent: Path) -> None:
    """Remove this user's folders whose graders have ended."""
    for path in parent.glob(PREFIX + "*"):
        try:
            found = path.lstat()
            if found.st_uid != os.geteuid() or time.time() - found.st_mtime < YOUNG_S:
                continue
            held = _lock(path)
        except OSError:  # removed meanwhile, or no folder
            continue
        if held is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the folder's lock, or None where another process holds it."""
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def folder_is_over(folder: Path, limits: Limits) -> bool:
    """Whether a scratch folder holds more files than allowed."""
    with os.scandir(folder) as entries:
        return sum(1 for _ in entries) > limits.files


def remove_folder(folder: Path) -> None:
    """Remove a scratch folder; it is flat, because nothing but plain files can be made in it.

    Another program may have removed it meanwhile.
    """
    with suppress(FileNotFoundError):
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        folder.rmdir()
