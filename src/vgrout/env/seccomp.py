"""The system calls that candidate code may make: an allowlist as a classic-BPF seccomp program.

Everything that is not listed fails with EPERM, so that library code degrades as it would on a locked-down host; a call
through another architecture's table kills the process. Pure computation needs some forty calls. Two profiles: `closed`
opens no file at all; `scratch` adds the calls that read and write files, and Landlock then confines those to one flat
folder (no folders, links, pipes or devices can be made and the folder cannot be left).

Arguments are checked where a call mixes harmless and harmful uses: `fcntl` and `ioctl` could otherwise make the kernel
send the process a signal of its own choosing (a program would fake a machine failure), `mmap` could bring in new code.
Imports the standard library only: the fork-server loads it without the package's dependencies.
"""

from __future__ import annotations

import platform
import struct
from typing import Literal

from vgrout.env.syscalls import Architecture, this_architecture

Profile = Literal["closed", "scratch"]

COMPUTE = """
    read write close fstat poll lseek munmap brk rt_sigaction rt_sigprocmask rt_sigreturn pread64 readv writev select
    sched_yield mremap madvise nanosleep getpid exit uname getcwd gettimeofday getrusage sysinfo times getuid getgid
    geteuid getegid getppid sigaltstack gettid time futex sched_getaffinity restart_syscall clock_gettime clock_getres
    clock_nanosleep exit_group pselect6 ppoll getrandom rseq
"""
# `truncate` by path is left out: Landlock confines it only from ABI 3 on. So is `renameat2`, which can make a device.
FILES = """
    open stat lstat access fsync fdatasync ftruncate rename unlink readlink getdents64 openat newfstatat unlinkat renameat
    readlinkat faccessat statx faccessat2
"""

_PROT_EXEC = 4
_FCNTL_COMMANDS = (1, 2, 3, 1030)
"""F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; not F_SETOWN, F_SETSIG or F_SETFL."""
_IOCTL_REQUESTS = (0x5401, 0x5450, 0x5451)
"""TCGETS (isatty), FIONCLEX, FIOCLEX."""

_LOAD, _JUMP_EQUAL, _JUMP_FROM, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000
_OFFSET_NR, _OFFSET_ARCH = 0, 4


def supported() -> bool:
    """Whether there is a system-call table for this machine."""
    return platform.system() == "Linux" and this_architecture() is not None


def program(profile: Profile, architecture: Architecture) -> bytes:
    """The filter as an array of `struct sock_filter`, ready for the kernel.

    A search tree over the call numbers, not a list: the kernel runs every filter that is installed on all numbers there
    are, to remember which are always allowed, and each child pays for that.
    """
    calls = architecture.some(COMPUTE + (FILES if profile == "scratch" else ""))
    backwards = [_op(_RETURN, _DENY), _op(_RETURN, _ALLOW)]
    entries: dict[int, int] = dict.fromkeys(calls.values(), 2)
    for name, body in _CHECKED.items():
        backwards += reversed(body)
        entries[architecture.numbers[name]] = len(backwards)
    _search(_segments(entries, deny=1), backwards)
    head = [
        _op(_LOAD, _OFFSET_ARCH),
        _op(_JUMP_EQUAL, architecture.audit, 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, _OFFSET_NR),
    ]
    return b"".join([*head, *reversed(backwards)])


def allowed_numbers(profile: Profile, architecture: Architecture) -> frozenset[int]:
    """Every call number that the profile lets through for at least some arguments."""
    names = COMPUTE + " ".join(_CHECKED) + (FILES if profile == "scratch" else "")
    return frozenset(architecture.some(names).values())


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    """Load the low half of an argument; the calls that are checked take 32-bit values there."""
    return _op(_LOAD, 16 + 8 * index)


def _one_of(index: int, values: tuple[int, ...]) -> list[bytes]:
    """Allow the call where its argument `index` is one of `values`, deny it otherwise."""
    tests = [op for value in values for op in (_op(_JUMP_EQUAL, value, 0, 1), _op(_RETURN, _ALLOW))]
    return [_argument(index), *tests, _op(_RETURN, _DENY)]


def _without_bits(index: int, bits: int) -> list[bytes]:
    """Allow the call where none of `bits` is set in its argument `index`, deny it otherwise."""
    return [_argument(index), _op(_JUMP_SET, bits, 0, 1), _op(_RETURN, _DENY), _op(_RETURN, _ALLOW)]


_CHECKED = {
    "fcntl": _one_of(1, _FCNTL_COMMANDS),
    "ioctl": _one_of(1, _IOCTL_REQUESTS),
    "mmap": _without_bits(2, _PROT_EXEC),
    "mprotect": _without_bits(2, _PROT_EXEC),
}
"""What decides on the calls whose arguments are checked."""


def _segments(entries: dict[int, int], deny: int) -> list[tuple[int, int]]:
    """(first number, entry) of each run of numbers that share an entry, from 0 up; the last run has no end."""
    segments: list[tuple[int, int]] = []
    for number in range(max(entries) + 2):
        entry = entries.get(number, deny)
        if not segments or entry != segments[-1][1]:
            segments.append((number, entry))
    return segments


def _search(segments: list[tuple[int, int]], backwards: list[bytes]) -> int:
    """Put code that finds the loaded number's segment by halving before the code so far; its entry.

    `backwards` is the program from its end; an entry is an instruction's distance from there.
    """
    if len(segments) == 1:
        return segments[0][1]
    half = len(segments) // 2
    above, below = _search(segments[half:], backwards), _search(segments[:half], backwards)
    here = len(backwards)
    backwards.append(_op(_JUMP_FROM, segments[half][0], here - above, here - below))
    return len(backwards)
