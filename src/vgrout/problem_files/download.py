"""Downloading one file: whole or not at all, with a time limit, and again where trying again can help."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from vgrout.run.disk import disk_errors
from vgrout.types import UserError

MAX_BYTES = 1 << 30
"""No problem file is larger; a server that never ends must not fill the disk."""
_CHUNK = 1 << 16
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Patience:
    """How long a download is waited for."""

    seconds: float = 30.0
    """For a connection, and then for each piece of the body."""
    attempts: int = 3
    pause: float = 2.0
    """Seconds before the second attempt; twice as long before each further one."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 3600 or self.attempts < 1:
            raise UserError(
                f"--timeout {self.seconds}, --attempts {self.attempts}: expected 0 to 3600 s, 1 attempt or more"
            )


class Unreachable(UserError):
    """The file could not be downloaded for reasons of the network or of the server."""


class Offline(Unreachable):
    """No attempt got as far as a whole answer, so other files of that server need not be tried."""


class _Again(Exception):
    """A failure of one attempt that another one may not have."""


def download(url: str, target: Path, patience: Patience, progress: Callable[[int, int | None], None]) -> None:
    """Writes the body of `url` to `target`; `progress` gets (bytes so far, bytes in all where the server says).

    Raises `Unreachable` after the last attempt, or at once where the server has no such file. An incomplete `target`
    may be left; the caller's folder is a temporary one.
    """
    for attempt in range(1, patience.attempts + 1):
        try:
            return _attempt(url, target, patience.seconds, progress)
        except _Again as failure:
            if attempt == patience.attempts:
                times = f"{attempt} attempts" if attempt > 1 else "1 attempt"
                raise Offline(f"cannot download {url}: {failure} ({times})") from failure
            wait = patience.pause * 2 ** (attempt - 1)
            logger.info(f"{url}: {failure}; attempt {attempt + 1} of {patience.attempts} in {wait:g} s")
            time.sleep(wait)


def _attempt(url: str, target: Path, seconds: float, progress: Callable[[int, int | None], None]) -> None:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "vgrout", "Accept-Encoding": "identity"})
        with urllib.request.urlopen(request, timeout=seconds) as response:
            _body(response, target, progress)
    except urllib.error.HTTPError as error:
        if error.code in _TRY_AGAIN:
            raise _Again(f"the server answers {error.code} {error.reason}") from error
        raise Unreachable(f"cannot download {url}: the server answers {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise _Again(f"no answer within {seconds:g} s") from error
    except urllib.error.URLError as error:
        slow = isinstance(error.reason, TimeoutError)
        why = f"no answer within {seconds:g} s" if slow else getattr(error.reason, "strerror", None) or error.reason
        raise _Again(str(why)) from error
    except (http.client.HTTPException, ConnectionError) as error:
        raise _Again(f"the connection broke ({error.__class__.__name__})") from error
    except ValueError as error:  # not an address at all
        raise UserError(f"cannot download {url}: {error}; expected --base-url https://HOST/FOLDER") from error


def _body(response: http.client.HTTPResponse, target: Path, progress: Callable[[int, int | None], None]) -> None:
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    done = 0
    # The disk's errors are told apart from the network's: both are OSErrors.
    with disk_errors(target):
        file = target.open("wb")
    with file:
        while piece := response.read(_CHUNK):
            with disk_errors(target):
                file.write(piece)
                file.flush()
            done += len(piece)
            progress(done, total)
            if done > MAX_BYTES:
                raise Unreachable(
                    f"cannot download {response.url}: more than {MAX_BYTES >> 20} MiB; is it another file?"
                )
    if total is not None and done != total:
        raise _Again(f"the connection broke after {done:,} of {total:,} bytes")
