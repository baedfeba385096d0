"""Reading JSON lines: one object a line, from plain or gzipped files, with the line named where one is wrong."""

from __future__ import annotations

import codecs
import gzip
import json
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vgrout.types import MissingHere, UserError

Rows = Iterator[tuple[int, dict[str, Any]]]


def read_rows(path: str | Path, what: str = "problem") -> Rows:
    """(line number, JSON object) of each line of a .jsonl or .jsonl.gz file; UserError where a line is no JSON object.

    `what` the rows are, for messages.
    """
    for number, row in read_lines(path, what):
        if isinstance(row, UserError):
            raise row
        yield number, row


def read_lines(path: str | Path, what: str = "problem") -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """As `read_rows`, but a line that is no JSON object comes as the error that says so, and reading goes on.

    Raises UserError where the file as a whole cannot be read.
    """
    path = _row_file(path, what)
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _line(line, f"{path}:{number}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{what} file {path}: not a whole gzip file ({error}); fetch it again or rename it") from error
    except OSError as error:
        raise UserError(f"{what} file {path}: cannot be read ({error.strerror}) after line {number}") from error


def _row_file(path: str | Path, what: str) -> Path:
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingHere(
            f"{what} file {path}: no such file; name a .jsonl or .jsonl.gz file of {what} rows"
            + " (`vgrout data fetch` brings the benchmark's)" * (what == "problem")
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{what} file {shown(str(path))}: cannot be read ({reason}); name another file") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder; name a .jsonl or .jsonl.gz file in it")
    if not stat.S_ISREG(mode):
        raise UserError(f"{what} file {path}: is no regular file; name a .jsonl or .jsonl.gz file")
    if path.suffixes[-1:] != [".jsonl"] and path.suffixes[-2:] != [".jsonl", ".gz"]:
        raise UserError(f"{what} file {path}: expected a name that ends in .jsonl or .jsonl.gz")
    return path


def _line(line: bytes, where: str) -> dict[str, Any] | UserError:
    if line.startswith(codecs.BOM_UTF8):
        return UserError(f"{where}: begins with a byte order mark; save the file as UTF-8 without one")
    try:
        return json_object(line.decode(), where)
    except UnicodeDecodeError:
        return UserError(f"{where}: not UTF-8 text; is it compressed? then name it .jsonl.gz")
    except UserError as error:
        return error


def json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object that a line holds; UserError where it holds none, or where a key occurs twice in an object."""
    try:
        row = json.loads(line, object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); expected one JSON object per line") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {shown(row)}")
    return row


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shown(next(n for n in names if names.count(n) > 1))!r} occurs twice in an object")
    return found


def shown(value: object, limit: int = 80) -> str:
    """A value on one line, cut short, for an error message; a string that is a description stays unquoted."""
    text = " ".join(str(value).split()) if isinstance(value, str) else repr(value)
    return (text or "''") if len(text) <= limit else text[: limit - 3] + "..."
