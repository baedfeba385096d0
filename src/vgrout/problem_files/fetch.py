"""`vgrout data fetch`: the benchmark's files, downloaded or carried over by hand, checked before they have their names."""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vgrout.problem_files.benchmark import BASE_URL, FILES, BenchmarkFile, require_disjoint, verified
from vgrout.problem_files.download import MAX_BYTES, Offline, Patience, Unreachable, download
from vgrout.run.console import say
from vgrout.run.disk import disk_errors, sync_folder
from vgrout.run.progress import Progress
from vgrout.types import UserError

_CHUNK = 1 << 20


def fetch(
    to: Path,
    roles: Sequence[str],
    *,
    source: Path | None = None,
    base_url: str = BASE_URL,
    pins: Mapping[str, str] | None = None,
    patience: Patience | None = None,
) -> None:
    """Puts the files of these roles into the folder `to`, each checked before it is given its name.

    `source` is a folder that they were carried to by hand (NAME or NAME.gz); otherwise they are downloaded from
    `base_url`/NAME. `pins` are sha256 by role. A right file that is there already is kept, another one is refused and
    never replaced. One file that fails does not keep the others; raises `UserError` at the end, with all reasons.
    """
    failures: dict[str, UserError] = {}
    offline = False
    for role in dict.fromkeys(roles):
        file, pin = FILES[role], (pins or {}).get(role)
        try:
            if (to / file.name).exists():
                say(_kept(to / file.name, file, pin))
                continue
            if offline:
                raise Unreachable(f"{file.name} was not tried")
            with _staging(to) as folder:
                staged = folder / file.name
                if source is not None:
                    _carry(source, staged)
                else:
                    _download(f"{base_url.rstrip('/')}/{file.name}", staged, patience or Patience())
                say(_placed(staged, to, file, pin))
        except UserError as error:
            failures[role] = error
            offline = offline or isinstance(error, Offline)
    if failures:
        if any(isinstance(error, Unreachable) for error in failures.values()):
            say(by_hand(to, [FILES[role] for role in failures], base_url))
        raise UserError("; ".join(map(str, failures.values())))


def _download(address: str, staged: Path, patience: Patience) -> None:
    with Progress(f"downloading {staged.name}") as bar:

        def report(done: int, total: int | None) -> None:
            bar.update(done, f"of {total:,} bytes" if total is not None else "bytes")

        download(address, staged, patience, report)


def by_hand(to: Path, files: Sequence[BenchmarkFile], base_url: str = BASE_URL) -> str:
    """What to do on a machine without network, in plain lines."""
    return "\n".join(
        [
            "Without network: download these on another machine (plain files, not the web page around them)",
            *(f"  {base_url.rstrip('/')}/{file.name}" for file in files),
            "carry them to a folder of this machine, say `carried`, and run",
            f"  vgrout data fetch --from carried --to {to} --files {' '.join(file.role for file in files)}",
            f"  vgrout data check {' '.join(str(to / file.name) for file in files)}",
        ]
    )


def parse_pins(texts: Sequence[str]) -> dict[str, str]:
    """`test=HEX` texts as sha256 by role. `UserError` for a role or a number that is none."""
    pins = {}
    for text in texts:
        role, _, digest = text.partition("=")
        if role not in FILES or len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef"):
            raise UserError(
                f"--sha256 {text}: expected ROLE=HEX, a role ({', '.join(FILES)}) and 64 hexadecimal digits"
            )
        pins[role] = digest.lower()
    return pins


@contextmanager
def _staging(to: Path) -> Generator[Path]:
    """A hidden folder inside `to`, on the same disk, so that a file gets its name by a rename; gone afterwards."""
    made = not to.exists()
    with disk_errors(to, "write to"):
        to.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=".fetch-", dir=to)
    try:
        with staging:
            yield Path(staging.name)
    finally:
        if made and not any(to.iterdir()):
            to.rmdir()


def _carry(source: Path, staged: Path) -> None:
    """Copies the file from the user's folder, unpacked."""
    plain, packed = source / staged.name, source / f"{staged.name}.gz"
    if not plain.is_file() and not packed.is_file():
        raise UserError(f"{plain}: no such file (nor {packed.name}); put it there, or leave it out with --files")
    try:
        if plain.is_file():
            with plain.open("rb") as file:
                _copy(file.read, staged)
        else:
            with gzip.open(packed) as file:
                _copy(file.read, staged)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{packed}: not a whole gzip file ({error}); carry it over again") from error
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror or error}; carry the files over again") from error


def _copy(read: Callable[[int], bytes], staged: Path) -> None:
    size = 0
    with disk_errors(staged.parent.parent, "write to"), staged.open("wb") as target:
        while piece := read(_CHUNK):
            size += len(piece)
            if size > MAX_BYTES:
                raise UserError(f"{staged.name}: more than {MAX_BYTES >> 20} MiB; is it another file?")
            target.write(piece)


def _placed(staged: Path, to: Path, file: BenchmarkFile, pin: str | None) -> str:
    """Checks the staged file, then gives it its name; what to say of it."""
    target = to / file.name
    try:
        problems, digest = verified(staged, file, pin)
        require_disjoint(problems, file, to)
    except UserError as error:
        reason = str(error).replace(f"{staged.parent}{os.sep}", "")
        raise UserError(
            f"{target} was not written: what was fetched is not the benchmark's file ({reason}); fetch it again, or take "
            f"it from another place with --base-url or --from"
        ) from error
    with disk_errors(target):
        with staged.open("rb") as written:
            os.fsync(written.fileno())
        staged.rename(target)
        sync_folder(to)
    return _line("fetched", target, file, digest, pin)


def _kept(target: Path, file: BenchmarkFile, pin: str | None) -> str:
    try:
        problems, digest = verified(target, file, pin)
        require_disjoint(problems, file, target.parent)
    except UserError as error:
        raise UserError(
            f"{target} is there already and is not the benchmark's file ({error}); nothing was replaced: move it away and fetch again"
        ) from error
    return _line("kept", target, file, digest, pin)


def _line(verb: str, target: Path, file: BenchmarkFile, digest: str, pin: str | None) -> str:
    how = (
        "as pinned"
        if pin
        else "as published"
        if file.sha256
        else f"not known here; pin it with --sha256 {file.role}={digest}"
    )
    return f"{verb:7} {target}: {file.rows} problems, {target.stat().st_size:,} bytes, sha256 {digest} ({how})"
