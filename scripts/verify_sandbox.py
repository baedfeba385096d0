"""The sandbox: what candidate code cannot do, and that trying harms nothing.

Invariants:
- a real child is denied every act of the self-test, in both profiles, and an act that is not denied is reported by name
- the seccomp programs of both architectures let through what is listed and nothing else, with the arguments and the
  architecture checked, and every number of their tables is the kernel's
- each limit ends a run with its own reason: CPU, wall, memory, value size, depth, printed output, files
- the child is sent no expected value, and inherits no descriptor and no environment
- a missing layer is an error that names it, unless waived; what was waived stands in the verdict
- nothing outlives its grade, and nothing outlives the grader
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import re
import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

from _attack_world import TOTAL, children_of
from _gate import Gate, Skip
from _grading import SHORT, answer, by_and_by, expect_error, fence, opened, prompt, servers_of
from vgrout.env import sandbox, seccomp, selftest
from vgrout.env.asserts import parse_tests
from vgrout.env.grader import Grader
from vgrout.env.modes import MODES
from vgrout.env.prompts import render
from vgrout.env.runner import Runner
from vgrout.env.syscalls import ARCHITECTURES
from vgrout.env.watch import InfraError
from vgrout.env.worker import Server

gate = Gate(__doc__)


@gate.invariant("a real child is denied every act of the self-test, in both profiles, and a lapse is reported by name")
def _():
    with opened() as grader:
        runner = grader._runners[0]
        for lapse in ("call('getpid')", "call('openat', AT, b'/dev/null', 0) is None", "1/0"):
            with mock.patch.dict(selftest.ACTS, {"the planted lapse": lapse}):
                expect_error("the planted lapse", lambda: selftest.require_containment(runner))
    return (
        f"{len(selftest.ACTS)} acts closed, {len(selftest.SCRATCH_ACTS)} with a scratch folder; 3 planted lapses found"
    )


# ---- the seccomp program, by a small machine of our own ------------------------------------------------------------


JUMPS = {0x15: operator.eq, 0x35: operator.ge, 0x45: operator.and_}
HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
"""The kernel's own tables, under /usr/include; aarch64 uses the generic one."""
NEVER = """
    socket socketpair fork vfork clone clone3 execve execveat kill tkill tgkill pidfd_send_signal ptrace prctl prlimit64
    process_vm_readv process_vm_writev io_uring_setup memfd_create unshare setns mount bpf shmget mq_open truncate
    renameat2 linkat symlinkat mkdirat mknodat fchmodat chdir seccomp capset landlock_restrict_self
"""
CHECKED = {
    "mmap": ((0, 0, 3), (0, 0, 7)),
    "mprotect": ((0, 0, 3), (0, 0, 4)),
    "fcntl": ((3, 1), (3, 4), (3, 8), (3, 10)),
    "ioctl": ((3, 0x5401), (3, 0x5412), (3, 0x5452)),
}
"""Arguments of the checked calls: the first are let through, the others refused."""


def filtered(program: bytes, number: int, arch: int, arguments: tuple[int, ...] = ()) -> str:
    """What the kernel would do with the call: "allow", "deny" or "kill"."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*arguments, *[0] * (6 - len(arguments))))
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation in JUMPS:
            at += if_true if JUMPS[operation](accumulator, value) else if_false
        else:
            assert operation == 0x06, operation
            return {0x7FFF0000: "allow", 0x00050001: "deny", 0x80000000: "kill"}[value]


@gate.invariant("the seccomp programs of both architectures let through what is listed, arguments checked, no more")
def _():
    figures = []
    for here, profile in itertools.product(ARCHITECTURES.values(), ("closed", "scratch")):
        program = seccomp.program(profile, here)
        assert len(program) % 8 == 0 and len(program) // 8 <= 4096, "more than the kernel takes"
        some = ((0, 1), (0, 0x5401))  # between them, arguments that every checked call accepts
        passed = {n for n in range(600) if any(filtered(program, n, here.audit, a) == "allow" for a in some)}
        listed = seccomp.allowed_numbers(profile, here)
        assert passed == listed, passed ^ listed
        assert not set(here.some(NEVER).values()) & passed
        assert set(here.some("openat unlinkat renameat").values()) & passed == (
            set(here.some("openat unlinkat renameat").values()) if profile == "scratch" else set()
        )
        for name, (good, *bad) in CHECKED.items():
            assert filtered(program, here.numbers[name], here.audit, good) == "allow", name
            assert all(filtered(program, here.numbers[name], here.audit, b) == "deny" for b in bad), name
        for number in (0x40000000 + 1, 2**31, 2**32 - 1):
            assert filtered(program, number, here.audit) == "deny", "x32 calls and numbers that wrap"
        others = {a.audit for a in ARCHITECTURES.values()} - {here.audit} | {0x40000003, 0x40000028}
        assert all(filtered(program, here.numbers["write"], a) == "kill" for a in others), "another table's calls"
        figures.append(f"{here.machine} {profile} {len(passed)} calls in {len(program) // 8} instructions")
    return ", ".join(figures)


@gate.invariant("every number of both system-call tables is the kernel's")
def _():
    checked = []
    for machine, name in HEADERS.items():
        header = Path("/usr/include", name)
        if not header.is_file():
            raise Skip(f"no kernel header {header} (Debian package linux-libc-dev)")
        found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
        kernel = {name: int(number) for name, number in found}
        kernel.setdefault("newfstatat", kernel.get("fstatat", -1))  # its name on 64-bit machines
        wrong = {n: k for n, k in ARCHITECTURES[machine].numbers.items() if kernel.get(n) != k}
        assert not wrong, (machine, wrong)
        absent = ARCHITECTURES["x86_64"].numbers.keys() - ARCHITECTURES[machine].numbers.keys()
        assert not absent & kernel.keys() - {"fstatat"}, (machine, absent & kernel.keys())
        checked.append(f"{machine} {len(ARCHITECTURES[machine].numbers)}")
    return ", ".join(checked)


# ---- limits --------------------------------------------------------------------------------------------------------

OVER = {
    "cpu": answer("while True: pass"),
    "wall": answer("import time\ntime.sleep(60)"),
    "memory": answer("return bytearray(2**31)"),
    "oversize": answer("return [0] * 10**6"),
    "oversize (depth)": answer("v = []\nfor _ in range(70): v = [v]\nreturn v"),
    "oversize (files)": answer("i = 0\nwhile True:\n    open(f'{i}.txt', 'w').write('x')\n    i += 1"),
    "exception": answer("with open('big.bin', 'wb') as f: f.write(bytes(2**20 + 1))\nreturn 0"),
    "died": answer("import os\nos._exit(0)"),
}


@gate.invariant("each limit ends a run with its own reason: CPU, wall, memory, value size, depth, files")
def _():
    with opened(workers=4, limits=replace(SHORT, wall_s=4.0)) as grader:
        verdicts = grader.grade_many([(prompt(), response) for response in OVER.values()])
        for name, verdict in zip(OVER, verdicts, strict=True):
            assert verdict.reason == name.split()[0] and not verdict.infra and verdict.reward == 0.5, (name, verdict)
        outcomes = {name: v.outcome for name, v in zip(OVER, verdicts, strict=True)}
        assert outcomes["cpu"] == outcomes["wall"] == "timeout" and outcomes["memory"] == "memory", outcomes
        assert outcomes["oversize"] == outcomes["oversize (files)"] == "output" and outcomes["died"] == "crash", (
            outcomes
        )
        cpu = verdicts[0].cpu_s
        assert 0.5 < cpu < 4, cpu  # far from the 20 s without a limit of its own, and from any accounting
        flood = answer("while True: print('x' * 1000)")
        quiet = answer("return 0", "print('x' * 70000)\nprint('all tests passed')")
        flooded, late = grader.grade_many([(prompt("stdout_marker"), flood), (prompt("stdout_marker"), quiet)])
        assert not flooded.channel and not late.channel, "output past its limit was read"
    return ", ".join(f"{name} {verdict.wall_s:.2f}s" for name, verdict in zip(OVER, verdicts, strict=True))


@gate.invariant("the child is sent no expected value, and inherits no descriptor and no environment")
def _():
    secret = 918273645546372819
    row = replace(TOTAL, id="secret", asserts=(f"assert Solution().total(nums = [1]) == {secret}",))
    sent = []
    plain = Server.run

    def recorded(self, request, *args, **kwargs):
        sent.append(request)
        return plain(self, request, *args, **kwargs)

    look = answer("import os\nfds = []\nfor fd in range(256):\n    try: os.fstat(fd)\n    except OSError: continue\n"
                  "    fds.append(fd)\nreturn [fds, dict(os.environ)]")  # fmt: skip
    nothing = "assert Solution().total(nums = []) == [[0, 1, 2, 3], {'PYTHONHASHSEED': '1', 'LC_CTYPE': 'C.UTF-8'}]"
    view = replace(TOTAL, id="view", asserts=(nothing,))
    bare = Grader([row, view], workers=1, cpu_limits={"secret": 1.0, "view": 1.0})
    with bare as grader, mock.patch.object(Server, "run", recorded):
        grader.grade_many([(render(row, mode, "train", 0), fence(row.canonical_solution)) for mode in MODES])
        inherited = grader.grade(render(view, "gt_only", "train", 0), look)
    needles = (str(secret).encode(), secret.to_bytes(8, "little"), b"gt_answer", b"assert Solution")
    marshalled = b"".join(struct.pack("=H", secret >> (15 * i) & 0x7FFF) for i in range(4))
    assert sent and not any(n in request for n in (*needles, marshalled) for request in sent)
    assert marshalled in __import__("marshal").dumps(secret), "the search would not find it"
    assert inherited.gt_correct, inherited
    return f"{len(sent)} requests of {sum(map(len, sent)) // len(sent)} bytes hold none of {len(needles) + 1} forms"


@gate.invariant("a missing layer is an error that names it, unless waived; what was waived stands in the verdict")
def _():
    hidden = mock.patch.object(sandbox, "available", lambda: ("seccomp",))
    if "landlock" not in sandbox.available():
        raise Skip("this machine has no Landlock to hide")
    make = lambda **options: Grader([TOTAL], workers=1, cpu_limits={"total": 1.0}, **options)  # noqa: E731
    with hidden:
        expect_error("'landlock' is missing", make)
        with make(allow_missing=("landlock",)) as grader:
            verdict = grader.grade(prompt(), fence(TOTAL.canonical_solution))
            assert verdict.gt_correct and verdict.missing_layers == ("landlock",), verdict
            leak = grader.grade(prompt(), answer("return len(open('/etc/passwd').read())"))
            assert leak.reason == "exception", leak
            expect_error("landlock", lambda: grader.grade(prompt("file_marker"), fence(TOTAL.canonical_solution)))
    with mock.patch.object(sandbox, "available", lambda: ("landlock",)):
        expect_error("'seccomp' is missing", make)
        expect_error("cannot be waived", lambda: make(allow_missing=("seccomp",)))
    with mock.patch("sys.platform", "darwin"):
        message = expect_error("container", make)
    return message[:60] + "..."


@gate.invariant("nothing outlives its grade, and nothing outlives the grader")
def _():
    grader = opened(workers=2)
    servers = servers_of(grader)
    folder = grader._folder.path
    grader.submit("slow", prompt(), answer("import time\ntime.sleep(60)"))
    assert by_and_by(lambda: any(map(children_of, servers))), "no child was running"
    running = [pid for server in servers for pid in children_of(server)]
    start = time.perf_counter()
    grader.close()
    seconds = time.perf_counter() - start
    assert by_and_by(lambda: not any(map(alive, (*servers, *running)))), "a process outlived the grader"
    assert not folder.exists() and seconds < 30, seconds  # the child sleeps for 60
    # A grader that is gone without a word: all that its fork-server sees is the closed socket.
    runner = Runner(folder, landlock=True)
    server = runner.start()
    program = "import time\nclass Solution:\n    def total(self, nums): time.sleep(60)"
    thread = threading.Thread(target=fails, args=(runner, program))
    thread.start()
    while not (running := children_of(server.process.pid)):
        time.sleep(0.01)
    server.control.shutdown(socket.SHUT_RDWR)
    assert server.process.wait(timeout=20) == 0, "a fork-server outlived its parent"
    assert by_and_by(lambda: not any(map(alive, running))), "a child outlived its fork-server"
    thread.join()
    return f"closed with a child asleep in {seconds:.2f}s"


def fails(runner: Runner, program: str) -> None:
    """Run a program whose server goes away under it."""
    with contextlib.suppress(InfraError):
        runner.oracle(program, parse_tests(TOTAL), sandbox.DEFAULT_LIMITS, files=False)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    gate.main()
