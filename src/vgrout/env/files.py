"""Writing a file so that it is either whole or not there: a temporary beside it, fsync, rename."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vgrout.types import UserError


def require_other_file(out: Path, *sources: str | Path) -> None:
    """UserError where `out` is one of the files that are read: writing it would destroy them."""
    for source in map(Path, sources):
        if out.exists() and source.exists() and out.samefile(source):
            raise UserError(f"output {out}: is the source itself; name another file")


@contextmanager
def written_atomically(path: str | Path) -> Generator[BinaryIO]:
    """A binary file that appears as `path` when the block ends well, and leaves nothing when it does not.

    Raises UserError where the folder does not exist or cannot be written, or `path` is a folder itself.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        file = temporary.open("xb")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; name an existing folder that you may write to"
        ) from error
    try:
        with file:
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
