"""A server on this machine that stands for the benchmark's, with two small files, and goes wrong as it is told."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import socket
import threading
from collections.abc import Generator
from typing import ClassVar
from unittest import mock

import _gate  # noqa: F401 - switches the type check on before the package is imported
from vgrout.env.problems import builtin_split
from vgrout.problem_files.benchmark import FILES, BenchmarkFile
from vgrout.problem_files.named import as_row


def lines(*rows: dict) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def rows(part: int, count: int) -> list[dict]:
    """Rows of the built-in training (0) or held-out (1) problems."""
    return [as_row(problem) for problem in builtin_split()[part][:count]]


TRAIN, TEST = lines(*rows(0, 3)), lines(*rows(1, 2))
SMALL = {
    "train": BenchmarkFile("train", "train.jsonl", 3, "three problems"),
    "test": BenchmarkFile("test", "test.jsonl", 2, "two problems", hashlib.sha256(TEST).hexdigest()),
}


class Server(http.server.BaseHTTPRequestHandler):
    """Serves what a test says, as it says; `asked` holds the paths in order."""

    bodies: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    how = "well"
    silence = threading.Event()

    def do_GET(self) -> None:
        kind = type(self)
        kind.asked.append(self.path)
        body, how = kind.bodies.get(self.path.lstrip("/")), kind.how
        if how.startswith("once ") and len(kind.asked) > 1:
            how = "well"
        how = how.removeprefix("once ")
        if how == "silent":
            kind.silence.wait(3)
            return
        if body is None or how == "busy":
            self.send_error(404 if body is None else 503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if how in ("short", "dead") else body)
        if how == "dead":  # a reset instead of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(how: str = "well", **bodies: bytes) -> Generator[str]:
    """The address of a server on this machine that serves these files; the benchmark is the small one meanwhile."""
    Server.bodies = {f"{name}.jsonl": body for name, body in ({"train": TRAIN, "test": TEST} | bodies).items()}
    Server.asked, Server.how, Server.silence = [], how, threading.Event()
    server = http.server.ThreadingHTTPServer(("localhost", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    with mock.patch.dict(FILES, SMALL), mock.patch.dict(os.environ, {"no_proxy": "*"}):
        try:
            yield "http" + f"://localhost:{server.server_port}"
        finally:
            Server.silence.set()
            server.shutdown()
            server.server_close()
