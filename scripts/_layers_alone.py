"""Programs that put themselves under one layer of the sandbox alone, try acts, and print what came of each as JSON.

Each runs in a fresh interpreter (`alone`). Every program first drops its capabilities, as a child of the sandbox does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from _attack_world import REPOSITORY

_HEAD = """
import ctypes, errno, json, os, signal, socket, struct, sys, tempfile
from pathlib import Path
from unittest import mock
from vgrout.env import sandbox, seccomp
from vgrout.env.syscalls import this_architecture
libc = ctypes.CDLL(None, use_errno=True)
here = this_architecture().numbers
found = {}

def drop_capabilities():
    assert libc.syscall(here["capset"], struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0

def attempt(name, act):
    try:
        result = act()
        found[name] = "done" if result is None or result is True or (type(result) is int and result >= 0) else repr(result)
    except OSError as error:
        found[name] = errno.errorcode[error.errno]

def raw(name, *arguments):
    if libc.syscall(ctypes.c_long(here[name]), *arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

def connect(family, address):
    with socket.socket(family) as end:
        end.settimeout(2)
        end.connect(address)

target, port, abstract, victim = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
HOST = {
    "read a file": lambda: open(f"{target}/answers.txt").close(),
    "create a file": lambda: open(f"{target}/made.txt", "w").close(),
    "make a folder": lambda: os.mkdir(f"{target}/made"),
    "connect": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
    "abstract socket": lambda: connect(socket.AF_UNIX, "\\0" + abstract),
    "signal a process": lambda: os.kill(victim, 0),
    "trace a process": lambda: raw("ptrace", 0x4206, victim, 0, 0),
}
"""

NOTHING = """
drop_capabilities()
for name, act in HOST.items():
    attempt(name, act)
os.remove(f"{target}/made.txt")
os.rmdir(f"{target}/made")
"""
"""No layer: shows that the acts are possible."""

LANDLOCK = """
def everything(profile, architecture):
    return struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)

with mock.patch.object(seccomp, "program", everything):
    confinement = sandbox.Confinement(landlock=True)
confinement._server = os.getppid()
result, writing = os.pipe()
keep = os.dup(1)
os.set_inheritable(keep, True)
with mock.patch.object(os, "closerange"):
    confinement.apply((), writing, None, None)
for name, act in HOST.items():
    attempt(name, act)
os.dup2(keep, 1)
"""
"""Landlock and the dropped capabilities, under a seccomp filter that allows every call."""

CAPABILITIES = """
drop_capabilities()
attempt("mount", lambda: raw("mount", b"none", b"/", None, 0, None))
attempt("chroot", lambda: os.chroot("/"))
attempt("another user", lambda: os.setuid(os.getuid() + 1))
attempt("host name", lambda: raw("unshare", 0x04000000))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("higher priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
"""

NAMESPACES = """
from vgrout.env import namespaces
segment = int(sys.argv[5])
before = os.getpid()
namespaces.enter()
attempt("connect", HOST["connect"])
attempt("abstract socket", HOST["abstract socket"])
attempt("signal a process", HOST["signal a process"])
attempt("signal the process outside", lambda: os.kill(before, 0))
attempt("attach shared memory of the host", lambda: raw("shmctl", segment, 2, bytes(256)))
found["process"], found["parent"] = os.getpid(), os.getppid()
found["interfaces up"] = [name for _, name in socket.if_nameindex() if name != "lo"]
os.write(1, json.dumps(found).encode())
os._exit(0)
"""

HIDDEN = """
import time
from _grading import opened, prompt, fence, TOTAL, servers_of
drop_capabilities()
def say(text):
    print(text, flush=True)
    sys.stdin.readline()
say("before")
with opened() as first, opened() as second:
    verdict = first.grade(prompt(), fence(TOTAL.canonical_solution))
    second.close()
    say(json.dumps([verdict.gt_correct, *servers_of(first)]))
say("after")
"""
"""A process that opens and closes graders, and says when, so that another can try to look into it and its fork-server."""

PRYING = """
drop_capabilities()
pid = int(sys.argv[5])
attempt("open memory", lambda: open(f"/proc/{pid}/mem", "rb").close())
attempt("open environment", lambda: open(f"/proc/{pid}/environ", "rb").read() and None)
attempt("follow a descriptor", lambda: os.readlink(f"/proc/{pid}/fd/0") and None)
buffer = ctypes.create_string_buffer(8)
own = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
attempt("trace", lambda: raw("ptrace", 0x4206, pid, 0, 0))
pidfd = os.pidfd_open(pid)
attempt("take a descriptor", lambda: raw("pidfd_getfd", pidfd, 0, 0))
"""


def arguments_of(values: dict[str, str], *more: int) -> list[str]:
    """What the programs' `sys.argv` holds of an attack world."""
    return [values["TARGET"], values["PORT"], values["ABSTRACT"], values["VICTIM"], *map(str, more)]


def started(program: str, arguments: list[str]) -> subprocess.Popen[str]:
    """A fresh interpreter that runs the program with pipes for input and output."""
    paths = f"{REPOSITORY / 'src'}:{REPOSITORY / 'scripts'}"
    return subprocess.Popen(
        [sys.executable, "-c", _HEAD + program + "\nprint(json.dumps(found), flush=True)", *arguments],
        env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def alone(program: str, arguments: list[str]) -> dict[str, Any]:
    """What the program found: for each act "done" or the name of the error."""
    with started(program, arguments) as process:
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, (process.returncode, text)
    return json.loads(text.splitlines()[-1])
