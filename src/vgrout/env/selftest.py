"""The start-up self-test: a real sandboxed child tries what it must not be able to do, and is denied each time.

A program that knows the sandbox goes through the ordinary oracle path, once per profile; every act is a raw system call
where there is one, so that no library stands between the act and the kernel. An act that is not denied is a UserError that
names it: nothing is graded on such a machine.
"""

from __future__ import annotations

import ast

from vgrout.env.asserts import Tests, marshalled_calls
from vgrout.env.runner import Runner
from vgrout.env.sandbox import MIB, Limits
from vgrout.types import UserError

ACTS = {
    "open a file": "call(257, -100, b'/etc/passwd', 0)",
    "open it the old way": "call(2, b'/etc/passwd', 0)",
    "create a file": "call(257, -100, b'/tmp/vgrout-selftest', 0o101, 0o600)",
    "truncate": "call(76, b'/tmp/x', 0)",
    "make a folder": "call(83, b'd', 0o700)",
    "make a symlink": "call(88, b'/etc', b's')",
    "make a hard link": "call(86, b'/etc/passwd', b'h')",
    "make a fifo": "call(133, b'f', 0o10600, 0)",
    "change folder": "call(80, b'/')",
    "change a mode": "call(90, b'/tmp', 0o777)",
    "an internet socket": "call(41, 2, 1, 0)",
    "a datagram socket": "call(41, 2, 2, 0)",
    "an IPv6 socket": "call(41, 10, 1, 0)",
    "a local socket": "call(41, 1, 1, 0)",
    "netlink": "call(41, 16, 3, 0)",
    "a socket pair": "call(53, 1, 1, 0, pair)",
    "a packet socket": "call(41, 17, 3, 0)",
    "fork": "call(57)",
    "vfork": "call(58)",
    "clone": "call(56, 17, 0, 0, 0, 0)",
    "clone3": "call(435, bytes(64), 64)",
    "a thread": "no_thread()",
    "exec": "call(59, b'/bin/true', None, None)",
    "execveat": "call(322, -1, b'', None)",
    "signal the parent": "call(62, parent, 0)",
    "signal init": "call(62, 1, 0)",
    "signal all": "call(62, -1, 0)",
    "signal a thread": "call(234, parent, parent, 0)",
    "queue a signal": "call(129, parent, 0, 0)",
    "open a process": "call(434, parent, 0)",
    "take a descriptor": "call(438, 0, 0, 0)",
    "ptrace": "call(101, 16, parent)",
    "read a process": "call(310, parent, None, 0, None, 0, 0)",
    "write one": "call(311, parent, None, 0, None, 0, 0)",
    "shared memory": "call(29, 0, 4096, 0o1600)",
    "a message queue": "call(68, 0, 0o1600)",
    "a memfd": "call(319, b'm', 0)",
    "a new namespace": "call(272, 0x10000000)",
    "enter a namespace": "call(308, 0, 0)",
    "mount": "call(165, 0, 0, 0, 0)",
    "io_uring": "call(425, 1, bytes(120))",
    "bpf": "call(321, 0, None, 0)",
    "userfaultfd": "call(323, 0)",
    "perf events": "call(298, bytes(128), 0, -1, -1, 0)",
    "keys": "call(250, 0, -3, 1)",
    "chroot": "call(161, b'/')",
    "raise a limit": "call(160, 0, bytes(16))",
    "a limit of another": "call(302, parent, 0, None, None)",
    "prctl": "call(157, 1, 0, 0, 0, 0)",
    "a new session": "call(112)",
    "an alarm": "call(37, 0)",
    "an interval timer": "call(38, 0, bytes(32), None)",
    "a posix timer": "call(222, 0, None, pair)",
    "own a descriptor's signals": "call(72, 3, 10, 9)",
    "code in memory": "call(9, 0, 4096, 7, 0x22, -1, 0)",
    "change the CPU set": "call(203, 0, 8, b'\\xff' * 8)",
    "change priority": "call(141, 0, 0, -5)",
    "more memory than allowed": "no_memory()",
    "read what is left open": "no_descriptors()",
}
"""What no child may do, as calls of PROGRAM's functions that are true where the act is denied."""

SCRATCH_ACTS = {
    **ACTS,
    "write outside": "call(257, -100, b'../selftest', 0o101, 0o600)",
    "list the root": "no_listing('/')",
    "write inside works": "writes_inside()",
    "a file larger than allowed": "no_big_file()",
}
"""The same in a run with a scratch folder, which can be used and not left."""

PROGRAM = """
import ctypes, errno, os, threading

libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
pair = (ctypes.c_int * 2)()


def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result == 0 and number in (56, 57, 58, 435):
        os._exit(0)
    return result == -1 and ctypes.get_errno() in (errno.EPERM, errno.EACCES)


def no_thread():
    try:
        threading.Thread(target=print).start()
    except RuntimeError:
        return True
    return False


def no_memory():
    try:
        bytearray(MEMORY)
    except MemoryError:
        return True
    return False


def no_descriptors():
    for fd in range(4, 256):
        try:
            os.fstat(fd)
        except OSError:
            continue
        return False
    return True


def no_listing(folder):
    try:
        os.listdir(folder)
    except PermissionError:
        return True
    return False


def writes_inside():
    with open("inside.txt", "w") as file:
        file.write("text")
    with open("inside.txt") as file:
        return file.read() == "text" and os.listdir() == ["inside.txt"]


def no_big_file():
    try:
        with open("big.bin", "wb") as file:
            file.write(bytes(FILE))
    except OSError:
        return True
    return False
"""


def require_containment(runner: Runner) -> None:
    """Run the self-test in every profile that this machine will use; UserError names the first act not denied.

    Raises InfraError where the sandbox cannot be started at all.
    """
    for profile, acts in (("closed", ACTS), ("scratch", SCRATCH_ACTS)):
        if profile == "scratch" and not runner.landlock:
            continue
        limits = Limits()
        program = f"MEMORY, FILE = {limits.memory_bytes + MIB}, {limits.file_bytes + 1}\n{PROGRAM}"
        result = runner.retried(
            lambda: runner.oracle(program, tests_of(acts), limits, files=profile == "scratch")  # noqa: B023
        )
        if not result.correct:
            act = list(acts)[result.matched]
            raise UserError(
                f"sandbox self-test ({profile} profile): a confined child was not denied: {act} ({result.reason}); "
                "do not grade on this machine; run vGROUT in a Linux container with another kernel"
            )


def tests_of(acts: dict[str, str]) -> Tests:
    """The acts as tests of PROGRAM: each call is expected to give True."""
    calls = marshalled_calls((ast.parse(call, mode="eval").body, "value") for call in acts.values())
    return Tests("self-test", (), b"", calls, (True,) * len(acts), b"", b"")
