"""The two files that grow: metrics.jsonl, and rollouts.jsonl.zst with one zstd frame per step.

A file of many frames is an ordinary .zst file (`zstdcat` reads it, one JSON line per rollout), and it can be cut at any
step's border without being decompressed and written again. Every frame carries a checksum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import zstandard
from loguru import logger

from vgrout.run.disk import append, cut, disk_errors, dumps
from vgrout.types import UserError

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """One step's rollouts: the bytes [start, end) of the file, and the text inside."""

    start: int
    end: int
    text: str
    """JSON lines in ASCII, so that no character of a completion can pass for a line's end."""

    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def step(self) -> int:
        return json.loads(self.text[: self.text.index("\n")])["step"]


def append_rollouts(path: Path, step: int, records: Iterable[Mapping[str, object]]) -> None:
    """Appends one frame with the step's records, `step` first in each. A step without records writes nothing."""
    lines = [dumps({"step": step, **record}, "rollout", indent=None) + "\n" for record in records]
    if lines:
        append(path, zstandard.ZstdCompressor(level=6, write_checksum=True).compress("".join(lines).encode()))


def read_frames(path: Path) -> Iterator[Frame]:
    """The complete frames in order. A torn last frame (a kill while it was written) ends the iteration with a warning."""
    start, rest = 0, b""
    with disk_errors(path, "read"), path.open("rb") as file:
        while rest or (rest := file.read(_CHUNK)):
            decoder = zstandard.ZstdDecompressor().decompressobj()
            parts, used = [], 0
            while rest and not decoder.eof:
                try:
                    parts.append(decoder.decompress(rest))
                except zstandard.ZstdError as error:
                    raise UserError(f"{path}: damaged at byte {start}: {error}; resume cuts it there") from error
                used += len(rest)
                rest = decoder.unused_data if decoder.eof else file.read(_CHUNK)
            if not decoder.eof:
                logger.warning(f"{path}: the last frame (byte {start}) is incomplete and was left out")
                return
            end = start + used - len(rest)
            yield Frame(start, end, b"".join(parts).decode())
            start = end


def read_rollouts(path: Path) -> Iterator[dict]:
    """Every rollout record of the file, in the order written."""
    for frame in read_frames(path):
        yield from frame.records()


def intact_size(path: Path) -> int:
    """Bytes up to the end of the last frame before a torn or damaged one; 0 where there is no file."""
    end = 0
    if path.exists():
        try:
            for frame in read_frames(path):
                end = frame.end
        except UserError as error:
            logger.warning(str(error))
    return end


def cut_rollouts(path: Path, step: int) -> None:
    """Drops every frame after `step`, and a torn or damaged one with all that follows it."""
    end = 0
    try:
        for frame in read_frames(path):
            if frame.step > step:
                break
            end = frame.end
    except UserError as error:
        logger.warning(f"{error} (cut at byte {end})")
    cut(path, end)


def latest_metrics(path: Path, count: int) -> list[dict]:
    """The last `count` complete lines of a metrics.jsonl that may still grow; none where there is no file yet."""
    if not path.is_file():
        return []
    with disk_errors(path, "read"):
        lines = path.read_bytes().split(b"\n")[
            :-1
        ]  # what follows the last line break is empty, or not yet a whole line
    return [json.loads(line) for line in lines[-count:]]


def metric_lines(path: Path) -> Iterator[tuple[bytes, dict]]:
    """The complete lines of metrics.jsonl, raw and parsed. A torn last line ends the iteration with a warning."""
    with disk_errors(path, "read"), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                logger.warning(f"{path}: the last line is incomplete and was left out")
                return
            try:
                yield line, json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{path}:{number}: expected one JSON object a line ({error}); was it edited?"
                ) from error
