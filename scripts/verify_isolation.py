"""Isolation: each layer of the sandbox contains on its own, and what held is said.

Invariants:
- Landlock alone, under a filter that allows every call, denies files, TCP, abstract sockets, signals and tracing
- dropped capabilities alone deny what root could do: mounts, other users, new namespaces, raw sockets
- a process with a grader open, and its fork-server, cannot be looked into by another of the same user; afterwards it can
- namespaces alone hide processes, listeners and shared memory of the host; a grader in them grades, and says so
- a child dies with its fork-server, and all of a wrapped fork-server with the process outside
- verdicts, the summary of `vgrout grade` and `vgrout doctor` name the layers that held
- macOS and Windows are refused in one line that names the container; so are namespaces that the machine refuses
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import _layers_alone as layers_alone
from _attack_world import REPOSITORY, TOTAL, World, children_of
from _gate import Gate, Skip, refusal
from _grading import answer, by_and_by, fence, opened, problem_row, prompt, servers_of
from vgrout.doctor import sandbox_lines
from vgrout.env import namespaces, sandbox
from vgrout.env.grade_files import grade_files
from vgrout.env.grader import Grader

gate = Gate(__doc__)
CLOSED_BOOK = {"EPERM", "EACCES", "ESRCH"}


def denied(found: dict[str, str], *names: str) -> None:
    wrong = {name: found[name] for name in names if found[name] not in CLOSED_BOOK}
    assert not wrong, wrong


@gate.invariant(
    "Landlock alone, under a filter that allows every call, denies files, TCP, sockets, signals and tracing"
)
def _():
    abi = sandbox.landlock_abi()
    if abi < 1:
        raise Skip("this kernel has no Landlock")
    with World() as world:
        there = layers_alone.arguments_of(world.values())
        possible = layers_alone.alone(layers_alone.NOTHING, there)
        assert {possible[n] for n in ("read a file", "create a file", "connect", "signal a process")} == {"done"}, (
            possible
        )
        found = layers_alone.alone(layers_alone.LANDLOCK, there)
        denied(found, "read a file", "create a file", "make a folder", "trace a process")
        if abi >= 4:
            denied(found, "connect")
        if abi >= 6:
            denied(found, "abstract socket", "signal a process")
    return f"version {abi}: {found}"


@gate.invariant("dropped capabilities alone deny what root could do")
def _():
    with World() as world:
        found = layers_alone.alone(layers_alone.CAPABILITIES, layers_alone.arguments_of(world.values()))
    denied(found, *found)
    return f"{len(found)} acts: {found}"


class Talk:
    """Lines from a process that waits for a line after each."""

    def __init__(self, process: subprocess.Popen[str]):
        assert process.stdin is not None and process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout

    def heard(self) -> str:
        line = self.stdout.readline().strip()
        assert line, "the process has ended"
        return line

    def go_on(self) -> None:
        self.stdin.write("\n")
        self.stdin.flush()


@gate.invariant("a process with a grader open, and its fork-server, cannot be looked into by another of the same user")
def _():
    def pry(pid: int) -> dict[str, str]:
        return layers_alone.alone(layers_alone.PRYING, [*there, str(pid)])

    with World() as world:
        there = layers_alone.arguments_of(world.values())
        with layers_alone.started(layers_alone.HIDDEN, there) as holder:
            talk = Talk(holder)
            assert talk.heard() == "before"
            before = pry(holder.pid)
            assert before["open memory"] == before["open environment"] == before["follow a descriptor"] == "done", (
                before
            )
            talk.go_on()
            correct, server = json.loads(talk.heard())
            assert correct, "the grader did not work without capabilities"
            parent, forker = pry(holder.pid), pry(server)
            denied(parent, *parent)
            denied(forker, *forker)
            talk.go_on()
            assert talk.heard() == "after"
            assert pry(holder.pid) == before, "the last grader that closes leaves the process as it was"
            holder.communicate("\n")
        assert holder.returncode == 0
    return f"{len(before)} ways, before {before}, while open all denied"


# ---- namespaces ----------------------------------------------------------------------------------------------------


@gate.invariant("namespaces alone hide the host's processes, listeners and shared memory")
def _():
    if reason := namespaces.refused():
        raise Skip(f"this machine refuses namespaces: {reason}")
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(0, 4096, 0o1666)
    assert segment >= 0
    program = layers_alone.NAMESPACES.replace('raw("shmctl", segment, 2, bytes(256))', SHARED)
    try:
        with World() as world:
            found = layers_alone.alone(program, layers_alone.arguments_of(world.values(), segment))
    finally:
        libc.shmctl(segment, 0, None)
    assert found.pop("process") == 1 and found.pop("parent") == 0 and found.pop("interfaces up") == [], found
    assert set(found.values()) <= {"ENETUNREACH", "ECONNREFUSED", "ESRCH", "EINVAL", "EIDRM"}, found
    return str(found)


SHARED = "(libc.shmctl(segment, 2, ctypes.create_string_buffer(256)) == 0) or (_ for _ in ()).throw(OSError(ctypes.get_errno(), ''))"  # fmt: skip
"""Ask for the host's segment; an error that is raised names itself."""


@gate.invariant("a grader in namespaces grades in every mode, withstands its self-test, says so, and leaves nothing")
def _():
    if reason := namespaces.refused():
        raise Skip(f"this machine refuses namespaces: {reason}")
    with opened(namespaces=True) as grader:
        (server,) = servers_of(grader)
        (inside,) = children_of(server)
        rows = [(prompt(mode), fence(TOTAL.canonical_solution)) for mode in ("gt_only", "run_tests", "file_marker")]
        verdicts = grader.grade_many(rows)
        assert all(v.gt_correct and v.layers == ("seccomp", "landlock", "namespaces") for v in verdicts), verdicts
        look = answer("import os, time\ntime.sleep(0.05)\nreturn os.getppid()")
        assert grader.grade(prompt(), look).reason == "mismatch"
        slept = grader.grade(prompt(), answer("import time\ntime.sleep(60)"))
        assert slept.reason == "wall", "its time waiting for a core was read of another process"
    assert by_and_by(lambda: not any(map(alive, (server, inside)))), "a wrapped fork-server outlived its grader"
    return f"{len(verdicts)} modes; fork-server {inside} in {server}"


@gate.invariant("a child dies with its fork-server, by kill -9 too, and all of a wrapped one with the process outside")
def _():
    wraps = (False,) if namespaces.refused() else (False, True)
    for wrapped in wraps:
        with opened(limits=sandbox.DEFAULT_LIMITS, namespaces=wrapped) as grader:
            (server,) = servers_of(grader)
            for body in ("import time\ntime.sleep(60)", "open('f', 'w')\nimport time\ntime.sleep(60)"):
                (server,) = servers_of(grader)
                key = f"{wrapped} {body}"
                grader.submit(key, prompt(), answer(body + "\nreturn 0"))
                assert by_and_by(lambda server=server, w=wrapped: len(family(server)) > w), "no child was running"
                running = family(server)
                os.kill(server, signal.SIGKILL)
                assert by_and_by(lambda running=running: not any(map(alive, running)), 5), "a child outlived its server"
                assert by_and_by(lambda server=server: servers_of(grader) != [server])
    return f"{2 * len(wraps)} fork-servers killed with a child asleep"


def family(pid: int) -> list[int]:
    """Descendants of a process."""
    return [found for child in children_of(pid) for found in (child, *family(child))]


def alive(pid: int) -> bool:
    """Whether the process is there and not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- what is said --------------------------------------------------------------------------------------------------


@gate.invariant("verdicts, the summary of `vgrout grade` and `vgrout doctor` name the layers that held")
def _():
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "p.jsonl").write_text(json.dumps(problem_row(TOTAL)))
        row = {"id": 1, "problem_id": "total", "mode": "gt_only", "response": fence(TOTAL.canonical_solution)}
        (here / "r.jsonl").write_text(json.dumps(row))
        said = []
        for allowed, have in (((), sandbox.available()), (("landlock",), ("seccomp",))):
            with mock.patch.object(sandbox, "available", lambda have=have: have):
                summary = grade_files(
                    here / "p.jsonl", here / "r.jsonl", here / "v.jsonl", workers=1, allow_missing=allowed
                )
            verdict = json.loads((here / "v.jsonl").read_text())
            assert verdict["gt_correct"] and verdict["layers"] == list(have), verdict
            assert verdict["missing_layers"] == list(allowed)
            assert f"sandbox {', '.join(have)}" in str(summary), summary
            assert ("without landlock" in str(summary)) == bool(allowed), summary
            said.append(verdict["layers"])
    lines = {line.what: line for line in sandbox_lines()}
    assert lines["sandbox at work"].found.startswith(", ".join(sandbox.available())), lines
    assert {"sandbox seccomp", "sandbox landlock", "sandbox namespaces"} <= lines.keys(), lines
    return f"{said}; {lines['sandbox at work'].found}"


@gate.invariant("macOS and Windows are refused in one line that names the container, and refused namespaces in one too")
def _():
    make: Callable[..., object] = lambda **options: Grader([TOTAL], workers=1, cpu_limits={"total": 1.0}, **options)  # noqa: E731
    with mock.patch("sys.platform", "darwin"):
        mac = refusal(make)
    assert "darwin" in mac and "container" in mac, mac
    # Windows has no `resource` or `fcntl` either: the refusal must come before anything asks for them.
    fake = "import sys; sys.platform = 'win32'; sys.modules['resource'] = sys.modules['fcntl'] = None"
    command = (
        f"{fake}\nfrom vgrout.cli import main\nmain(['grade', '--problems', 'p', '--responses', 'r', '--out', 'o'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={"PYTHONPATH": str(REPOSITORY / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and "container" in lines[0], (done.returncode, done.stderr)
    with mock.patch("vgrout.env.layers.refused", lambda: "namespaces: Operation not permitted"):
        plain = refusal(lambda: make(namespaces=True))
    assert "'namespaces'" in plain and "Operation not permitted" in plain, plain
    return f"{mac[:60]}...; {lines[0][:60]}...; {plain[:60]}..."


if __name__ == "__main__":
    gate.main()
