"""The start-up self-test: a real sandboxed child tries what it must not be able to do, and is denied each time.

A program that knows the sandbox goes through the ordinary oracle path, once per profile; every act is a raw system call
where there is one, so that no library stands between the act and the kernel. An act that is not denied is a UserError that
names it: nothing is graded on such a machine.
"""

from __future__ import annotations

import ast

from vgrout.env import seccomp
from vgrout.env.asserts import Tests, marshalled_calls
from vgrout.env.runner import Runner
from vgrout.env.sandbox import MIB, Limits
from vgrout.env.syscalls import UNFILTERED, this_architecture
from vgrout.types import UserError

ACTS = {
    "open a file": "call('openat', AT, b'/etc/passwd', 0)",
    "open it the old way": "call('open', b'/etc/passwd', 0)",
    "open its own memory": "call('openat', AT, b'/proc/self/mem', 2)",
    "open the parent's memory": "call('openat', AT, b'/proc/%d/mem' % parent, 2)",
    "open the null device": "call('openat', AT, b'/dev/null', 2)",
    "open by handle": "call('open_by_handle_at', AT, bytes(64), 0)",
    "create a file": "call('openat', AT, b'/tmp/vgrout-selftest', 0o101, 0o600)",
    "create shared memory by a file": "call('openat', AT, b'/dev/shm/vgrout-selftest', 0o101, 0o600)",
    "truncate": "call('truncate', b'/tmp/x', 0)",
    "make a folder": "call('mkdirat', AT, b'd', 0o700)",
    "make a symlink": "call('symlinkat', b'/etc', AT, b's')",
    "make a hard link": "call('linkat', AT, b'/etc/passwd', AT, b'h', 0)",
    "make a fifo": "call('mknodat', AT, b'f', 0o10600, 0)",
    "make a device by a rename": "call('renameat2', AT, b'a', AT, b'b', 4)",
    "change folder": "call('chdir', b'/')",
    "change a mode": "call('fchmodat', AT, b'/tmp', 0o777)",
    "change an owner": "call('fchownat', AT, b'/tmp', 0, 0, 0)",
    "change a file's times": "call('utimensat', AT, b'/tmp', None, 0)",
    "watch files": "call('inotify_init1', 0)",
    "a socket of any family": "all(call('socket', f, kind, 0) for f in range(48) for kind in (1, 2, 3, 5))",
    "a socket pair": "call('socketpair', 1, 1, 0, pair)",
    "fork": "call('fork')",
    "fork by the library": "no_fork()",
    "vfork": "call('vfork')",
    "clone": "call('clone', 17, 0, 0, 0, 0)",
    "clone3": "call('clone3', bytes(64), 64)",
    "a thread": "no_thread()",
    "exec": "call('execve', b'/bin/true', None, None)",
    "execveat": "call('execveat', -1, b'', None)",
    "signal the parent": "call('kill', parent, 0)",
    "signal init": "call('kill', 1, 0)",
    "signal all": "call('kill', -1, 0)",
    "signal a thread": "call('tgkill', parent, parent, 0)",
    "queue a signal": "call('rt_sigqueueinfo', parent, 0, 0)",
    "open a process": "call('pidfd_open', parent, 0)",
    "signal an open process": "call('pidfd_send_signal', 3, 0, None, 0)",
    "take a descriptor": "call('pidfd_getfd', 0, 0, 0)",
    "ptrace": "call('ptrace', 16, parent)",
    "read a process": "call('process_vm_readv', parent, None, 0, None, 0, 0)",
    "write one": "call('process_vm_writev', parent, None, 0, None, 0, 0)",
    "shared memory": "call('shmget', 0, 4096, 0o1600)",
    "a message queue": "call('msgget', 0, 0o1600)",
    "a semaphore": "call('semget', 0, 1, 0o1600)",
    "a named message queue": "call('mq_open', b'/q', 0o102, 0o600, None)",
    "a memfd": "call('memfd_create', b'm', 0)",
    "secret memory": "call('memfd_secret', 0)",
    "a new namespace": "call('unshare', 0x10000000)",
    "enter a namespace": "call('setns', 0, 0)",
    "mount": "call('mount', 0, 0, 0, 0)",
    "io_uring": "call('io_uring_setup', 1, bytes(120))",
    "bpf": "call('bpf', 0, None, 0)",
    "userfaultfd": "call('userfaultfd', 0)",
    "perf events": "call('perf_event_open', bytes(128), 0, -1, -1, 0)",
    "keys": "call('keyctl', 0, -3, 1)",
    "chroot": "call('chroot', b'/')",
    "raise a limit": "call('setrlimit', 0, bytes(16))",
    "a limit of another": "call('prlimit64', parent, 0, None, None)",
    "prctl": "call('prctl', 1, 0, 0, 0, 0)",
    "another personality": "call('personality', 0x40000)",
    "another user": "call('setuid', 0)",
    "capabilities": "call('capset', bytes(8), bytes(24))",
    "another filter": "call('seccomp', 1, 0, None)",
    "a new session": "call('setsid')",
    "an alarm": "call('alarm', 0)",
    "an interval timer": "call('setitimer', 0, bytes(32), None)",
    "a posix timer": "call('timer_create', 0, None, pair)",
    "own a descriptor's signals": "call('fcntl', 3, 10, 9)",
    "type into a terminal": "call('ioctl', 1, 0x5412, b'x')",
    "code in memory": "call('mmap', 0, 4096, 7, 0x22, -1, 0)",
    "change the CPU set": "call('sched_setaffinity', 0, 8, b'\\xff' * 8)",
    "change priority": "call('setpriority', 0, 0, -5)",
    "another system call": "all(refused(n, -1, -1, -1, -1, -1, -1) for n in range(600) if n not in ALLOWED)",
    "more memory than allowed": "no_memory()",
    "read what is left open": "no_descriptors()",
}
"""What no child may do, as calls of PROGRAM's functions that are true where the act is denied."""

SCRATCH_ACTS = {
    **ACTS,
    "write outside": "call('openat', AT, b'../selftest', 0o101, 0o600)",
    "move out of the folder": "writes_inside() and call('renameat', AT, b'inside.txt', AT, b'../selftest')",
    "remove outside": "call('unlinkat', AT, b'/etc/hostname', 0)",
    "list the root": "no_listing('/')",
    "write inside works": "writes_inside()",
    "a file larger than allowed": "no_big_file()",
}
"""The same in a run with a scratch folder, which can be used and not left."""

PROGRAM = """
import ctypes, errno, os, threading

AT = -100
libc = ctypes.CDLL(None, use_errno=True)
parent, self = os.getppid(), os.getpid()
pair = (ctypes.c_int * 2)()


def call(name, *arguments):
    return name not in NUMBERS or refused(NUMBERS[name], *arguments)


def refused(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if os.getpid() != self:
        os._exit(0)
    return result == -1 and ctypes.get_errno() in (errno.EPERM, errno.EACCES)


def no_fork():
    try:
        pid = os.fork()
    except PermissionError:
        return True
    if pid == 0:
        os._exit(0)
    return False


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
    plans: tuple[tuple[seccomp.Profile, dict[str, str]], ...] = (("closed", ACTS), ("scratch", SCRATCH_ACTS))
    for profile, acts in plans:
        if profile == "scratch" and not runner.landlock:
            continue
        limits = Limits()
        program = program_for(profile, limits)
        if runner.namespaces:
            acts = acts | {"see the host's processes": "parent == 1"}
        result = runner.retried(
            lambda: runner.oracle(program, tests_of(acts), limits, files=profile == "scratch")  # noqa: B023
        )
        if not result.correct:
            act = list(acts)[result.matched]
            # What the last of its reports said is lost with a child that dies.
            reason = "died there or soon after" if result.reason == "died" else result.reason
            raise UserError(
                f"sandbox self-test ({profile} profile): a confined child was not denied: {act} ({reason}); "
                "do not grade on this machine; run vGROUT in a Linux container with another kernel"
            )


def program_for(profile: seccomp.Profile, limits: Limits) -> str:
    """PROGRAM with this machine's system calls and the limits that it tries to exceed."""
    here = this_architecture()
    assert here is not None, "a machine without a table has no seccomp layer either"
    values = {
        "NUMBERS": here.numbers,
        "ALLOWED": set(seccomp.allowed_numbers(profile, here) | UNFILTERED),
        "MEMORY": limits.memory_bytes + MIB,
        "FILE": limits.file_bytes + 1,
    }
    return "".join(f"{name} = {value!r}\n" for name, value in values.items()) + PROGRAM


def tests_of(acts: dict[str, str]) -> Tests:
    """The acts as tests of PROGRAM: each call is expected to give True."""
    calls = marshalled_calls((ast.parse(call, mode="eval").body, "value") for call in acts.values())
    return Tests("self-test", (), b"", calls, (True,) * len(acts), b"", b"", canonical="")
