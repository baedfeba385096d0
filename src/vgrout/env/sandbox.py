"""The sandbox's layers: what one child process is confined to before it compiles a line of candidate code.

Order in the child: death with its server, the scratch folder, no new privileges, Landlock, descriptors, resource
limits, capabilities, and last the seccomp allowlist, after which none of this can be changed. Every layer works without
privileges. Imports the standard library only (see `seccomp`); `available` and `Limits` are also used by the parent.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from dataclasses import dataclass, replace

from vgrout.env import seccomp
from vgrout.env.syscalls import this_architecture

MIB = 1024 * 1024
LAYERS = ("seccomp", "landlock")
"""Layers that a machine may lack; the others (rlimits, no_new_privs, closed descriptors) every Linux has."""
WAIVABLE = ("landlock",)
"""Layers that a user may allow to be missing: without Landlock the closed seccomp profile alone still contains."""
RESULT_FD = 3

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_SIGKILL = 9
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446
_SECCOMP_SET_MODE_FILTER, _SECCOMP_GET_ACTION_AVAIL, _SECCOMP_SPEC_ALLOW = 1, 2, 4
_FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR, _FS_REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 5
_FS_MAKE_REG, _FS_TRUNCATE = 1 << 8, 1 << 14


@dataclass(frozen=True)
class Limits:
    """What one child may use. CPU time decides a verdict; wall time is a backstop that leaves out waiting for a core."""

    cpu_s: int = 20
    """CPU seconds, user and system."""
    wall_s: float = 30.0
    """Wall seconds not spent waiting for a core."""
    memory_bytes: int = 1024 * MIB
    """Address space."""
    stdout_bytes: int = 64 * 1024
    """Output that a channel run may print."""
    value_bytes: int = MIB
    """One returned value, as JSON."""
    depth: int = 64
    """Nesting of one returned value."""
    file_bytes: int = MIB
    """One scratch file."""
    files: int = 32
    """Scratch files."""
    source_bytes: int = MIB
    """The candidate's source text."""
    stack_bytes: int = 96 * MIB
    """The C stack (deep recursion through cached functions needs it)."""
    descriptors: int = 32
    """Open files."""

    def with_cpu(self, cpu_s: int) -> Limits:
        """The same limits with another CPU limit, and a wall backstop that cannot come before it."""
        return replace(self, cpu_s=cpu_s, wall_s=max(self.wall_s, 1.5 * cpu_s))


DEFAULT_LIMITS = Limits()

Rlimits = tuple[tuple[int, tuple[int, int]], ...]
"""Resource limits: (which, (soft, hard)) of each."""
_FIXED_LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: 0,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
}
"""The same for every run."""


def available() -> tuple[str, ...]:
    """The layers of `LAYERS` that this machine has."""
    if not sys.platform.startswith("linux"):
        return ()
    have = []
    if seccomp.supported() and _seccomp_works():
        have.append("seccomp")
    if landlock_abi() >= 1:
        have.append("landlock")
    return tuple(have)


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 where there is none."""
    return max(0, _libc().syscall(_SYS_LANDLOCK_CREATE, None, 0, 1))


def hide_process() -> None:
    """Make this process not dumpable: no ptrace, no reading of its memory or environment by others of the same user."""
    _call("prctl", _libc().prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0)


class Confinement:
    """Prepared once in the fork-server, applied by each child to itself; nothing of it can be undone.

    All that is the same for every child is made here, because a child pays for each page of memory that it touches.
    """

    def __init__(self, *, landlock: bool):
        libc = _libc()
        self._prctl, self._syscall = libc.prctl, libc.syscall
        self._server = os.getpid()
        here = this_architecture()
        if here is None:
            raise OSError("seccomp: no system-call table for this machine")
        self._seccomp, self._capset = here.numbers["seccomp"], here.numbers["capset"]
        self._programs = {p: _filter_program(seccomp.program(p, here)) for p in ("closed", "scratch")}
        self._abi = landlock_abi() if landlock else 0
        self._handled = _handled_by(self._abi)
        self._ruleset = self._create_ruleset() if landlock else None
        self._capabilities = struct.pack("=Ii", 0x20080522, 0), bytes(24)

    def rlimits(self, limits: Limits) -> Rlimits:
        """The resource limits as `apply` wants them, none above what this process may set."""
        # Soft equals hard for CPU: the kernel then sends SIGKILL, which a program cannot catch or ignore.
        values = _FIXED_LIMITS | {
            resource.RLIMIT_CPU: limits.cpu_s,
            resource.RLIMIT_AS: limits.memory_bytes,
            resource.RLIMIT_STACK: limits.stack_bytes,
            resource.RLIMIT_FSIZE: limits.file_bytes,
            resource.RLIMIT_NOFILE: limits.descriptors,
        }
        capped = []
        for which, value in values.items():
            _, hard = resource.getrlimit(which)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            capped.append((which, (value, value)))
        return tuple(capped)

    def apply(self, rlimits: Rlimits, result: int, stdout: int | None, scratch: int | None) -> None:
        """Confine the calling process. `scratch` is a folder's descriptor or None; OSError names the layer that failed."""
        _call("pdeathsig", self._prctl, _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != self._server:
            raise OSError("pdeathsig: the server is gone")
        if scratch is not None:
            os.fchdir(scratch)
        _call("no_new_privs", self._prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        self._restrict_files(scratch)
        os.dup2(0, 2)  # descriptors 0 and 1 of the server are the null device, 2 is its error report
        if stdout is not None:
            os.dup2(stdout, 1)
        if result != RESULT_FD:
            os.dup2(result, RESULT_FD)
        os.closerange(RESULT_FD + 1, 65536)
        for which, value in rlimits:
            resource.setrlimit(which, value)
        _call("capabilities", self._syscall, self._capset, *self._capabilities)
        filter_program = self._programs["closed" if scratch is None else "scratch"]
        arguments = (self._seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_SPEC_ALLOW, filter_program)
        _call("seccomp", self._syscall, *arguments)

    def rehearse(self, rlimits: Rlimits) -> None:
        """Go through the library functions that `apply` uses, changing nothing: it finds them bound and warm."""
        for which, _ in rlimits:
            resource.setrlimit(which, resource.getrlimit(which))
        self._prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # as it is already
        self._syscall(_SYS_LANDLOCK_RESTRICT, -1, 0)  # fails: there is no such ruleset
        os.dup2(1, 1)
        os.closerange(65535, 65536)
        os.getppid()

    def _restrict_files(self, scratch: int | None) -> None:
        if self._ruleset is None:
            if scratch is not None:
                raise OSError("landlock: a scratch folder cannot be confined without it")
            return
        ruleset = self._ruleset
        if scratch is not None:
            ruleset = self._create_ruleset()
            rights = _FS_WRITE_FILE | _FS_READ_FILE | _FS_READ_DIR | _FS_REMOVE_FILE | _FS_MAKE_REG
            rule = struct.pack("=Qi", rights | (_FS_TRUNCATE if self._abi >= 3 else 0), scratch)
            _call("landlock rule", self._syscall, _SYS_LANDLOCK_ADD, ruleset, 1, rule, 0)
        _call("landlock", self._syscall, _SYS_LANDLOCK_RESTRICT, ruleset, 0)

    def _create_ruleset(self) -> int:
        return _call("landlock ruleset", self._syscall, _SYS_LANDLOCK_CREATE, self._handled, len(self._handled), 0)


def _handled_by(abi: int) -> bytes:
    """The attributes of a Landlock ruleset that handles (so denies, where no rule allows) all that this kernel can."""
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    network = 0b11 if abi >= 4 else 0
    scope = 0b11 if abi >= 6 else 0
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    return struct.pack("=QQQ", rights, network, scope)[:size]


def _filter_program(instructions: bytes) -> ctypes._Pointer:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    program = Program(len(instructions) // 8, instructions)
    return ctypes.pointer(program)


def _seccomp_works() -> bool:
    here = this_architecture()
    allow = struct.pack("=I", 0x7FFF0000)
    return here is not None and _libc().syscall(here.numbers["seccomp"], _SECCOMP_GET_ACTION_AVAIL, 0, allow) == 0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(layer: str, function, *arguments) -> int:
    result = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{layer}: {os.strerror(number)}")
    return result
