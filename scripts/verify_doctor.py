"""`vgrout doctor` says what works here, by trying it, and what to do about the rest.

Invariants:
- it needs no network and leaves nothing; each line has a status, and whatever is not ok has a remedy;
- its verdict is the exit code: 0 where training is possible, 1 where a needed thing is missing or broken;
- a missing layer of the sandbox is named with what waives it and what that gives up, or that nothing does;
- a package out of its range, a folder that cannot be written and a sandbox that contains nothing are found.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from typing import Any
from unittest import mock

from _cli import FOLDER, run
from _gate import Gate
from vgrout.doctor import sandbox_lines
from vgrout.env import sandbox
from vgrout.types import UserError

gate = Gate(__doc__)
STATUS = re.compile(r"^(ok|missing|broken) +(.+?)  +(\S.*)$", re.MULTILINE)


def refuse(*args: Any, **named: Any) -> Any:
    raise AssertionError("a connection was asked for")


def doctor(*patches: Any, out: str = "nowhere") -> tuple[int, dict[str, tuple[str, str]], str]:
    """(exit code, {what: (status, found)}, text)."""
    with ExitStack() as stack:
        for patch in (mock.patch.object(socket.socket, "connect", refuse), *patches):
            stack.enter_context(patch)
        code, text, _ = run("doctor", "--out", str(FOLDER / out))
    return code, {what: (status, found) for status, what, found in STATUS.findall(text)}, text


def raising(message: str) -> Callable[..., Any]:
    def act(*args: Any, **named: Any) -> Any:
        raise UserError(message)

    return act


@gate.invariant("it opens no connection, leaves nothing, and gives a remedy for whatever is not ok")
def _():
    code, lines, text = doctor()
    assert not (FOLDER / "nowhere").exists()
    assert len(lines) >= 12, text
    rows = text.splitlines()
    for at, row in enumerate(rows):
        if row.startswith(("missing", "broken")):
            assert rows[at + 1].strip().startswith("->"), f"no remedy: {row}"
    works = all(lines[what][0] == "ok" for what in ("Python", "packages", "sandbox at work", "built-in problems"))
    assert (code == 0) == works and ("Training is possible here" in text) == works, (code, text)
    return ", ".join(f"{what} {status}" for what, (status, _) in lines.items())


@gate.invariant("a missing layer is named with what waives it and what that gives up, or that nothing does")
def _():
    with mock.patch.object(sandbox, "available", lambda: ("seccomp",)):
        lines = {line.what: line for line in sandbox_lines()}
    landlock = lines["sandbox landlock"]
    assert landlock.status == "missing" and not landlock.needed, landlock
    assert "--env.sandbox-allow-missing landlock" in landlock.remedy and "file_marker" in landlock.remedy, landlock
    assert "without landlock" in lines["sandbox at work"].found, lines
    with mock.patch.object(sandbox, "available", lambda: ("landlock",)):
        lines = {line.what: line for line in sandbox_lines()}
    assert lines["sandbox seccomp"].needed and "cannot be waived" in lines["sandbox seccomp"].remedy, lines
    assert lines["sandbox at work"].status == "broken" and lines["sandbox at work"].needed, lines
    return "landlock can be waived, seccomp cannot"


@gate.invariant("a package out of range, an unwritable folder and a sandbox that does not contain end in exit code 1")
def _():
    real = metadata.requires("vgrout") or []
    (FOLDER / "file").write_text("")
    cases = {
        "packages": doctor(
            mock.patch("vgrout.doctor.metadata.requires", lambda name: [*real, "numpy>=99", "nosuchpackage>=1"])
        ),
        "output folder": doctor(out="file"),
        "sandbox at work": doctor(
            mock.patch("vgrout.env.selftest.require_containment", raising("not denied: fork; do not grade"))
        ),
    }
    for what, (code, lines, text) in cases.items():
        assert code == 1 and lines[what][0] == "broken", (what, code, text)
        assert f"Training is not possible here: {what}." in text, text
        others = [name for name, (status, _) in lines.items() if status == "broken" and name != what]
        assert not others, (what, others)
    found = cases["packages"][1]["packages"][1]
    assert "numpy>=99 (" in found and "nosuchpackage>=1 (not installed)" in found, found
    return ", ".join(cases)


if __name__ == "__main__":
    gate.main()
