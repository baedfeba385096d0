"""Two listeners for one log: the console hears little and plainly, log.txt hears everything with time and place."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from loguru import logger

_FILE_FORMAT = "{time:YYYY-MM-DD HH:mm:ss.SSS} {level:7} {name}:{function}:{line} {message}"


def setup_console(level: str = "INFO") -> None:
    """Replaces loguru's default listener by a terse one on standard error."""
    logger.remove()
    logger.add(
        _to_stderr,
        level=level,
        format=_terse,
        filter=lambda record: "file_only" not in record["extra"],
    )


def _to_stderr(message: str) -> None:
    # The stream is looked up at each message: a progress bar swaps sys.stderr while it is drawn.
    sys.stderr.write(message)


def _terse(record: Any) -> str:
    severity = "" if record["level"].no <= 20 else f"{record['level'].name.lower()}: "
    return severity + "{message}\n{exception}"


def say(line: str) -> None:
    """Prints a line that belongs to a command's result (tables, the last line), and keeps a copy in the log file."""
    print(line, flush=True)
    logger.bind(file_only=True).opt(depth=1).info(line)


def add_log_file(path: Path) -> int:
    """Adds the verbose listener; returns its number for `logger.remove`. OSError where the file cannot be opened."""
    return logger.add(_LogFile(path), level="DEBUG", format=_FILE_FORMAT, backtrace=False, diagnose=False)


class _LogFile:
    """The file that a listener writes to. A full disk costs lines of the log and never the run, nor the message that says
    why the run stops; loguru's own file would print a traceback at every line and fail when it is closed."""

    def __init__(self, path: Path):
        self.path, self._broken = path, False
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def write(self, message: str) -> None:
        try:
            os.write(self._file, message.encode(errors="backslashreplace"))
        except OSError as error:
            if not self._broken:  # not through the log, which is in the middle of a line
                sys.stderr.write(f"warning: cannot write {self.path}: {error.strerror}; lines of the log are lost\n")
            self._broken = True

    def stop(self) -> None:
        with suppress(OSError):
            os.close(self._file)
