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

Profile = Literal["closed", "scratch"]


def _numbers(table: str) -> dict[str, int]:
    words = table.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


_X86_64_COMPUTE = _numbers("""
    read 0  write 1  close 3  fstat 5  poll 7  lseek 8  munmap 11  brk 12  rt_sigaction 13  rt_sigprocmask 14
    rt_sigreturn 15  pread64 17  readv 19  writev 20  select 23  sched_yield 24  mremap 25  madvise 28  nanosleep 35
    getpid 39  exit 60  uname 63  getcwd 79  gettimeofday 96  getrusage 98  sysinfo 99  times 100  getuid 102
    getgid 104  geteuid 107  getegid 108  getppid 110  sigaltstack 131  gettid 186  time 201  futex 202
    sched_getaffinity 204  restart_syscall 219  clock_gettime 228  clock_getres 229  clock_nanosleep 230
    exit_group 231  pselect6 270  ppoll 271  getrandom 318  rseq 334
""")
# `truncate` by path is left out: Landlock confines it only from ABI 3 on.
_X86_64_FILES = _numbers("""
    open 2  stat 4  lstat 6  access 21  fsync 74  fdatasync 75  ftruncate 77  rename 82  unlink 87  readlink 89
    getdents64 217  openat 257  newfstatat 262  unlinkat 263  renameat 264  readlinkat 267  faccessat 269
    renameat2 316  statx 332  faccessat2 439
""")
_X86_64_MMAP, _X86_64_MPROTECT, _X86_64_IOCTL, _X86_64_FCNTL = 9, 10, 16, 72
_AUDIT_ARCH_X86_64 = 0xC000003E

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
    return platform.system() == "Linux" and platform.machine() == "x86_64"


def program(profile: Profile) -> bytes:
    """The filter as an array of `struct sock_filter`, ready for the kernel.

    A search tree over the call numbers, not a list: the kernel runs every filter that is installed on all numbers there
    are, to remember which are always allowed, and each child pays for that.
    """
    calls = _X86_64_COMPUTE | (_X86_64_FILES if profile == "scratch" else {})
    backwards = [_op(_RETURN, _DENY), _op(_RETURN, _ALLOW)]
    entries: dict[int, int] = dict.fromkeys(calls.values(), 2)
    for number, body in _CHECKED.items():
        backwards += reversed(body)
        entries[number] = len(backwards)
    _search(_segments(entries, deny=1), backwards)
    head = [
        _op(_LOAD, _OFFSET_ARCH),
        _op(_JUMP_EQUAL, _AUDIT_ARCH_X86_64, 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, _OFFSET_NR),
    ]
    return b"".join([*head, *reversed(backwards)])


def allowed_numbers(profile: Profile) -> frozenset[int]:
    """Every call number that the profile lets through for at least some arguments."""
    files = set(_X86_64_FILES.values()) if profile == "scratch" else set()
    return frozenset(set(_X86_64_COMPUTE.values()) | files | _CHECKED.keys())


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
    _X86_64_FCNTL: _one_of(1, _FCNTL_COMMANDS),
    _X86_64_IOCTL: _one_of(1, _IOCTL_REQUESTS),
    _X86_64_MMAP: _without_bits(2, _PROT_EXEC),
    _X86_64_MPROTECT: _without_bits(2, _PROT_EXEC),
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
