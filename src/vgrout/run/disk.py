"""Writing files so that a kill or a full disk never leaves half of one, and says in one line what went wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from vgrout.types import UserError

_REMEDIES = {
    errno.ENOSPC: "free some space on that disk, or choose another folder",
    errno.EDQUOT: "free some of your quota on that disk, or choose another folder",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder on a disk that is not read-only",
    errno.ENOTDIR: "a part of that path is a file; choose another folder",
    errno.EEXIST: "something of that name is in the way; choose another name",
    errno.ENOTEMPTY: "something of that name is in the way; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
_ATTEMPTS = 100


@contextmanager
def disk_errors(path: Path, action: str = "write") -> Generator[None]:
    """Turns an OSError into a UserError of one line that names the path, the cause and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk, or choose another folder")
        raise UserError(f"cannot {action} {path}: {error.strerror or error}; {remedy}") from error


def dumps(value: object, what: str = "value", *, indent: int | None = 2) -> str:
    """JSON text (ASCII: a completion may hold half a surrogate pair) of plain data, dataclasses, paths and sets.

    Raises ValueError, naming `what`, for NaN, infinities and other objects.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be written as JSON: {error}") from error


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not plain data")


def write_atomic(path: Path, data: str | bytes | memoryview) -> None:
    """Writes a whole file or nothing: a temporary beside it, fsync, rename, fsync of the folder."""
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with disk_errors(path):
        try:
            # os.open and not tempfile: the file gets the user's umask, so colleagues can read the run.
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def append(path: Path, data: bytes) -> None:
    """Appends and flushes to the disk. On an error the file is cut back, so that no half line stays behind."""
    with disk_errors(path, "append to"), path.open("ab") as file:
        start = file.tell()
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), start)
            raise


def cut(path: Path, size: int) -> None:
    """Shortens a file to `size` bytes and waits until the disk has it."""
    with disk_errors(path, "shorten"), path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def read_json(path: Path) -> dict:
    """The JSON object in a file; UserError where the file is missing, unreadable or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is its folder a run folder?") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON, got {error}; the file was damaged or edited") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}; the file was damaged or edited")
    return value


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(root: Path, name: str | None = None) -> None:
    """UserError where a run (called `name`) could not be made under `root`. Leaves nothing behind.

    For the start of a program, so that a mistyped folder is found before a model has been loaded.
    """
    parent = root / "runs"
    _require_name(name)
    with disk_errors(parent, "make a run folder in"), _folder(parent):
        if name is not None and (parent / name).exists():
            raise UserError(f"the run {parent / name} exists; choose another name, or continue it with --resume")
        probe = parent / f".{secrets.token_hex(4)}.tmp"
        _make_inside(probe)
        probe.rmdir()


def make_folder(parent: Path, name: str | None, stem: str, files: Mapping[str, str]) -> Path:
    """A new folder under `parent` with these files, filled under a hidden name and renamed, so that it is seen whole.

    It is called `name`, which must be new, or else `stem`, with the first free number behind it where that exists.
    UserError where that fails; what was made on the way, parents included, is removed again.
    """
    _require_name(name)
    staging = parent / f".{name or stem}.{secrets.token_hex(4)}.tmp"
    with disk_errors(parent, "make a run folder in"), _folder(parent):
        try:
            _make_inside(staging)
            for file_name, text in files.items():
                write_atomic(staging / file_name, text)
            final = _rename_to_free_name(staging, parent, name, stem)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        sync_folder(parent)
        return final


def _require_name(name: str | None) -> None:
    if name is not None and not _NAME.fullmatch(name):
        raise UserError(f"run name {name!r}: expected letters, digits and . _ + = - (no folders); choose another name")


@contextmanager
def _folder(folder: Path) -> Generator[None]:
    """Afterwards removes the folder and its parents where they were not there before and are empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):  # somebody else's by now, or never made
                path.rmdir()


def _make_inside(path: Path) -> None:
    """Makes a folder with its parents, which another run that starts now may remove while they are still empty."""
    for attempt in range(_ATTEMPTS):
        try:
            return path.mkdir(parents=True)
        except (FileNotFoundError, FileExistsError):  # a parent went between two looks at it
            if attempt + 1 == _ATTEMPTS:
                raise


def _rename_to_free_name(staging: Path, parent: Path, name: str | None, stem: str) -> Path:
    number = 1
    while True:
        final = parent / (name or (stem if number == 1 else f"{stem}_{number}"))
        try:
            if final.exists():  # a rename would replace an empty folder without a word
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            return staging.rename(final)
        except OSError as error:
            # Another process may take the name after the look; then the rename itself says so.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            if name is not None:
                raise UserError(f"the run {final} exists; choose another name, or continue it with --resume") from error
            number += 1
