"""The fork-server: a small single-threaded process that forks one confined child per job.

Started by exec of a clean interpreter with no environment, so it works whatever its parent has imported or started; it
preloads what candidate programs may import (a child can open no file, so an import of anything else fails there), and
it never sees requests, expected values or an earlier candidate: descriptors pass through it to the child.

Protocol, on a sequenced socket. Server, once: READY. Parent: JSON `{"limits": {...}, "fds": [names], "prelude": [import
statements]}` with the descriptors of those names (request, result, and stdout or scratch where the run has them); the
same text again is not read again. Server, each a MESSAGE: a child that is still running after a moment is STARTED (its
pid, with its pidfd); once it has been reaped, ENDED (its wait status and CPU seconds); where fork failed, only FAILED
(errno). Most children end within the moment, so that either side wakes once for them. The server ends when its parent
does.

Every page of memory that a child, or this process after a fork, writes to is copied, and that is most of what a short
grade costs. Hence what all children need is made before the fork, and a rehearsal leaves the interpreter's caches warm.

Run as `python -s -S -P server.py CONFIG` with CONFIG a JSON object: control (descriptor), root (the folder that holds
the package), modules and paths (third-party modules to preload and their folders), landlock and namespaces (bool). The environment
holds nothing but PYTHONHASHSEED, so that the order of a set, and with it a verdict, is the same in every server.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import importlib
import json
import os
import random
import re
import select
import signal
import socket
import struct
import sys
import types

_STANDARD = """
    __future__ abc array ast base64 binascii bisect calendar cmath collections collections.abc contextlib copy dataclasses
    datetime decimal doctest enum errno fractions functools graphlib hashlib heapq html inspect io itertools json keyword
    linecache locale logging math numbers operator os os.path pathlib pickle platform pprint queue random re resource
    secrets statistics string struct sys textwrap threading time timeit traceback types typing unicodedata unittest
    warnings weakref zlib _strptime ctypes encodings.ascii encodings.latin_1 csv shutil tempfile unittest.mock
"""
STANDARD_MODULES = tuple(_STANDARD.split())
"""Enough of the standard library for programs that compute, and for hacks as models write them (files, objects that equal
everything); each shared library makes every fork dearer."""
ABSENT_MODULES = ("_hashlib", "_ssl", "_bz2", "_lzma")
"""Big shared libraries that the modules above can do without (hashlib has its own digests)."""
MAX_KEPT = 64
PARENT_CHECK_MS = 5000
RECURSION_LIMIT = 10_000
READY = b"ready"
STARTED, ENDED, FAILED = 1, 2, 3
MESSAGE = struct.Struct("=iid")
"""STARTED, ENDED or FAILED; pid, wait status or errno; CPU seconds."""
MOMENT_MS = 4


def main() -> None:
    """Load, announce readiness, then serve until the parent is gone."""
    config = json.loads(sys.argv[1])
    if config["namespaces"]:
        sys.path.insert(0, config["root"])
        from vgrout.env import namespaces

        namespaces.enter()
    control = socket.socket(fileno=config["control"])
    sys.argv, sys.orig_argv = ["solution.py"], ["solution.py"]
    server = Server(control, *load(config))
    try:
        control.send(READY)
        while (received := server.receive()) is not None:
            server.serve(*received)
    except (BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


def load(config: dict):
    """Import the sandbox and the preloaded modules, then close the import system and freeze the heap."""
    for name in ABSENT_MODULES:
        sys.modules[name] = None  # ty: ignore[invalid-assignment] - how the import system marks a module as absent
    for name in STANDARD_MODULES:
        importlib.import_module(name)
    sys.path[:0] = config["paths"]
    for name in config["modules"]:
        importlib.import_module(name)
    sys.path.insert(0, config["root"])
    from vgrout.env import child, rehearsal, sandbox

    sandbox.hide_process()
    confinement = sandbox.Confinement(landlock=config["landlock"])
    sys.path.clear()
    sys.path_importer_cache.clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "vgrout"]:
        del sys.modules[name]
    os.chdir("/")
    sys.setrecursionlimit(RECURSION_LIMIT)
    rehearsal.rehearse(confinement)
    random.seed(0)
    gc.collect()
    gc.disable()
    gc.freeze()
    rehearsal.fill_gaps()
    return confinement, child.main, sandbox.Limits


def is_plain_import(statement: str) -> bool:
    """Whether the text is one import statement that only names preloaded standard modules."""
    found = re.fullmatch(r"(?:import ([\w.]+)(?: as \w+)?|from ([\w.]+) import (?:\*|[\w, ]+))", statement)
    return found is not None and (found[1] or found[2]) in STANDARD_MODULES


class Job:
    """What jobs of the same text have in common."""

    def __init__(self, limits, rlimits, fds: list[str], module: types.ModuleType):
        self.limits, self.rlimits, self.fds, self.module = limits, rlimits, fds, module


class Server:
    """One job at a time; the descriptors of a job are closed here as soon as its child has them."""

    def __init__(self, control: socket.socket, confinement, child_main, make_limits):
        self.control = control
        self.confinement, self.child_main, self.make_limits = confinement, child_main, make_limits
        self.parent = os.getppid()
        self.jobs: dict[bytes, Job] = {}
        self.preludes: dict[tuple[str, ...], types.ModuleType] = {}
        # Not os.fork: its hooks (logging, threading, random) touch hundreds of pages, each of which the child must then
        # copy. They repair what other threads may have left, and this process has none.
        self.leave = os._exit
        self.fork = ctypes.PyDLL(None, use_errno=True).fork

    def receive(self) -> tuple[bytes, list[int]] | None:
        """The next job's text and its descriptors, or None when the parent is gone."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        while not poll.poll(PARENT_CHECK_MS):
            if os.getppid() != self.parent:
                return None
        data, fds, _, _ = socket.recv_fds(self.control, 65536, 8)
        return (data, fds) if data else None

    def serve(self, text: bytes, fds: list[int]) -> None:
        """Fork one child, wait for its end, report it."""
        job = self.jobs.get(text) or self.job(text)
        sys.modules["solution"] = job.module
        ctypes.set_errno(0)
        pid = self.fork()
        if pid == 0:
            try:
                received = dict(zip(job.fds, fds, strict=True))
                self.child_main(self.confinement, job.limits, job.rlimits, received, job.module)
            finally:
                self.leave(1)  # never back into the server's loop, whatever the program did to `os`
        for fd in fds:
            os.close(fd)
        if pid < 0:
            self.control.send(MESSAGE.pack(FAILED, ctypes.get_errno(), 0))
            return
        pidfd = os.pidfd_open(pid)
        try:
            self.wait(pidfd, pid)
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # no effect on a child that has ended
            os.close(pidfd)
            _, status, usage = os.wait4(pid, 0)
        self.control.send(MESSAGE.pack(ENDED, status, usage.ru_utime + usage.ru_stime))

    def job(self, text: bytes) -> Job:
        """What the text asks for, ready to be used by a child."""
        if len(self.jobs) >= MAX_KEPT:
            self.jobs.clear()
        asked = json.loads(text)
        limits = self.make_limits(**asked["limits"])
        job = Job(limits, self.confinement.rlimits(limits), asked["fds"], self.module(tuple(asked["prelude"])))
        self.jobs[text] = job
        gc.freeze()
        return job

    def module(self, prelude: tuple[str, ...]) -> types.ModuleType:
        """A module in which these import statements have run; the child, a copy, uses it as the program's own.

        Importing in each child would touch, and so copy, most of the heap. Nothing but import statements of preloaded
        modules is ever executed here: anything else ends the server.
        """
        if prelude not in self.preludes:
            if len(self.preludes) >= MAX_KEPT:
                self.preludes.clear()
            module = types.ModuleType("solution")
            module.__dict__["__builtins__"] = builtins
            for statement in prelude:
                if not is_plain_import(statement):
                    raise ValueError(f"not an import of a preloaded module: {statement!r}")
                exec(statement, module.__dict__)
            self.preludes[prelude] = module
        return self.preludes[prelude]

    def wait(self, pidfd: int, pid: int) -> None:
        """Return when the child has ended or the parent is gone; hand the pidfd over if that takes more than a moment."""
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self.control, 0)  # reports nothing but the other end's closing
        if poll.poll(MOMENT_MS):
            return
        socket.send_fds(self.control, [MESSAGE.pack(STARTED, pid, 0)], [pidfd])
        while not poll.poll(PARENT_CHECK_MS):
            if os.getppid() != self.parent:
                return


if __name__ == "__main__":
    main()
