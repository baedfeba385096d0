"""Writing a file so that it is either whole or not there: a temporary beside it, fsync, rename."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vgrout.types import UserError

YOUNG_S = 60.0
"""Between its making and its lock a temporary belongs to nobody: younger ones are left alone."""


def require_other_file(out: Path, *sources: str | Path) -> None:
    """UserError where `out` is one of the files that are read: writing it would destroy them."""
    for source in map(Path, sources):
        if out.exists() and source.exists() and out.samefile(source):
            raise UserError(f"output {out}: is the source itself; name another file")


@contextmanager
def written_atomically(path: str | Path) -> Generator[BinaryIO]:
    """A binary file that appears as `path` when the block ends well, and leaves nothing when it does not.

    A writer that was killed leaves its temporary, which the next writer of this file removes.
    Raises UserError where the folder does not exist or cannot be written, or `path` is a folder itself.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it")
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        file = temporary.open("xb")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; name an existing folder that you may write to"
        ) from error
    try:
        with file:
            with suppress(OSError):  # a file system without locks: no other writer can take one either
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"cannot write {path}: {error.strerror}; free some space and try again") from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporaries of this file that no living writer has locked."""
    with suppress(OSError):  # what cannot be looked at is left alone
        for found in path.parent.iterdir():
            name = re.fullmatch(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp", found.name)
            if name is None or time.time() - found.lstat().st_mtime < YOUNG_S:
                continue
            held = os.open(found, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.unlink()
            except BlockingIOError:
                pass
            finally:
                os.close(held)
