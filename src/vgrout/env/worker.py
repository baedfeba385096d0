"""The trusted side of one fork-server: start it, run one request at a time, end it."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from vgrout.env.descriptors import Descriptors
from vgrout.env.sandbox import Limits
from vgrout.env.server import READY
from vgrout.env.watch import START_S, Child, Exit, InfraError

THIRD_PARTY = ("sortedcontainers",)
"""Modules outside the standard library that candidate programs may import."""
HASH_SEED = "1"
"""Any fixed value: the order of a set must not differ between servers."""


class Server:
    """One fork-server process. Not thread-safe: each worker thread has its own."""

    def __init__(self, *, landlock: bool, namespaces: bool = False):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config = {
            "control": theirs.fileno(),
            "root": str(Path(__file__).parents[2]),
            "modules": list(THIRD_PARTY),
            "paths": [_folder_of(name) for name in THIRD_PARTY],
            "landlock": landlock,
            "namespaces": namespaces,
        }
        script = Path(__file__).with_name("server.py")
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-s", "-S", "-P", str(script), json.dumps(config)],
                    env={"PYTHONHASHSEED": HASH_SEED},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    cwd="/",
                )
        except OSError as error:
            ours.close()
            raise InfraError(f"the fork-server did not start: {error}") from error
        self.control = ours
        self.control.settimeout(START_S)
        if self._receive()[0] != READY:
            raise InfraError("the fork-server said something else than that it is ready")

    def run(
        self,
        request: bytes,
        limits: Limits,
        on_line: Callable[[bytes], bool],
        *,
        prelude: tuple[str, ...] = (),
        stdout: bool = False,
        scratch: Path | None = None,
        allowance: Callable[[], float | None] = lambda: None,
    ) -> Exit:
        """Run one request in a child. `on_line` gets each line it reports and returns True when it has seen enough.

        `allowance`: asked after each line, how many seconds of CPU the child may use from the first answer on; None for
        as many as the limits say.
        `prelude`: import statements that the server has run already (see `server`). With `stdout` what the child prints
        is kept (up to its limit); `scratch` is a folder that it may write to.
        Raises InfraError, after which the server is to be closed.
        """
        try:
            with Descriptors() as fds:
                child = Child(self.control, self._receive, fds, limits, on_line, allowance)
                return child.run(request, prelude, stdout, scratch)
        except OSError as error:
            raise InfraError(f"sandbox run: {error}") from error

    def close(self) -> None:
        """End the server and with it a child that still runs."""
        self.control.close()
        if self.process.stderr is not None:
            self.process.stderr.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _receive(self) -> tuple[bytes, list[int]]:
        try:
            data, fds, _, _ = socket.recv_fds(self.control, 65536, 4)
        except OSError as error:
            raise InfraError(f"the fork-server does not answer: {error}") from error
        if not data:
            raise InfraError(f"the fork-server ended: {self._last_words()}")
        return data, fds

    def _last_words(self) -> str:
        if self.process.stderr is None or not select.select([self.process.stderr], [], [], 1.0)[0]:
            return "no message"
        text = os.read(self.process.stderr.fileno(), 65536).decode(errors="replace").strip()
        return text.splitlines()[-1] if text else "no message"


def _folder_of(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise InfraError(f"the module {module} is not installed, and candidate programs may import it; install it")
    origin = Path(spec.origin)
    return str(origin.parents[1] if origin.name == "__init__.py" else origin.parent)
