"""Gate: the runner of gates cannot be passed by a gate that did not hold.

Invariants:
- it counts passed, failed and skipped invariants, and each way in which a gate can die as a failure
- it fails where nothing passed or a name is unknown, and leaves no process behind
- a line appears while its gate still runs, and gates run in parallel
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _gate import Gate

SCRIPTS = Path(__file__).parent
gate = Gate(__doc__)

HEAD = '"""A gate.\n\nInvariants:\n- one\n"""\nfrom _gate import Gate, Skip\ngate = Gate(__doc__)\n'
ONE = '@gate.invariant("{name}"{slow})\ndef _():\n    {body}\n'


def run_gates(gates: dict[str, str], *options: str) -> tuple[int, str]:
    """Exit code and output of the runner on a folder of these gates."""
    with tempfile.TemporaryDirectory() as root:
        for name, text in gates.items():
            (Path(root) / f"verify_{name}.py").write_text(text)
        command = [sys.executable, str(SCRIPTS / "run_gates.py"), "--folder", root, "--no-preload", "--jobs", "3"]
        done = subprocess.run([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout


def one(body: str, name: str = "one", slow: bool = False) -> str:
    return ONE.format(name=name, slow=", slow=True" if slow else "", body=body)


GOOD = HEAD + one('return "1.5"') + one("raise AssertionError('slow one')", "two", slow=True)
SKIPS = HEAD + one('raise Skip("no data here")')
# gate -> what the runner must count for it
ENDINGS = {
    "fails": (HEAD + one("assert 1 == 2, 'planted'"), "planted"),
    "dies": (HEAD + one('return "fine"') + one("import os; os.kill(os.getpid(), 9)", "two"), "died of SIGKILL"),
    "exits": (HEAD + one('return "fine"') + one("import sys; sys.exit(0)", "two"), "exited with code 1"),
    "vanishes": (HEAD + one("import os; os._exit(0)"), "left no results"),
    "broken": ("import does_not_exist\n", "exited with code 1"),
    "empty": (HEAD, "declares no"),
}


@gate.invariant("the runner counts passed, failed, skipped, and each way in which a gate can die as a failure")
def _():
    code, output = run_gates({"good": GOOD, "skips": SKIPS}, "--quick")
    assert (code, output.splitlines()[-1]) == (0, "1 passed, 0 failed, 1 skipped"), output
    assert "no data here" in output
    code, output = run_gates({"good": GOOD, "skips": SKIPS}, "--slow")
    assert (code, output.splitlines()[-1]) == (1, "0 passed, 1 failed") and "slow one" in output, output
    code, output = run_gates({"good": GOOD, "skips": SKIPS} | {name: text for name, (text, _) in ENDINGS.items()})
    expected = f"1 passed, {1 + len(ENDINGS)} failed, 1 skipped"
    assert (code, output.splitlines()[-1]) == (1, expected), output
    for name, (_, says) in ENDINGS.items():
        assert f"verify_{name}" in output and says in output, (says, output)
    start = time.monotonic()
    code, output = run_gates({"hangs": HEAD + one("import time; time.sleep(300)")}, "--timeout", "2")
    assert (code, output.splitlines()[-1]) == (1, "0 passed, 1 failed") and "was stopped after 2 s" in output, output
    assert time.monotonic() - start < 200
    return f"{expected}: {', '.join(ENDINGS)}; and one that hangs"


@gate.invariant("the runner fails where nothing ran, and leaves no process behind")
def _():
    for gates, options in (({}, ()), ({"skips": SKIPS}, ()), ({"good": GOOD}, ("--only", "nothing like it"))):
        code, output = run_gates(gates, *options)
        assert code == 1 and "0 passed, 0 failed" in output.splitlines()[-1], output
    code, output = run_gates({"good": GOOD}, "missing")
    assert code == 1 and "there are: verify_good" in output, output
    with tempfile.TemporaryDirectory() as scratch:
        beat = Path(scratch) / "beat"
        loop = ["sh", "-c", f"while :; do echo >>{beat}; sleep 0.1; done"]
        wait = f"import pathlib, time\n    while not pathlib.Path({str(beat)!r}).exists(): time.sleep(0.05)"
        code, output = run_gates({"leaks": HEAD + one(f"import subprocess; subprocess.Popen({loop})\n    {wait}")})
        size = beat.stat().st_size
        time.sleep(0.5)
        assert code == 0 and beat.stat().st_size == size, (code, output)
    return "4 empty runs refused; a stray child of a gate ended with it"


@gate.invariant("a line appears while its gate still runs, and gates run in parallel")
def _():
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        # Each gate waits for the others' marks, then, its first line printed, for a mark that only its reader sets.
        for name in "abc":
            meet = f"from pathlib import Path; import time; here = Path({root!r}); (here / {name!r}).touch()"
            marks = "while not all((here / n).exists() for n in 'abc'): time.sleep(0.02)"
            read = "while not (here / 'read').exists(): time.sleep(0.02)"
            first = one(f"{meet}\n    {marks}\n    return 'first'")
            text = HEAD + first + one(f"{meet}\n    {read}", "two")
            (folder / f"verify_{name}.py").write_text(text)
        command = [sys.executable, str(SCRIPTS / "run_gates.py"), "--folder", root, "--no-preload", "--jobs", "3"]
        seen = 0
        with subprocess.Popen([*command, "--timeout", "60"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                seen += "[first]" in line
                if seen == 3:
                    (folder / "read").touch()
    assert process.returncode == 0 and seen == 3, (process.returncode, seen)
    return "three gates met; three lines were read before their gates ended"


if __name__ == "__main__":
    gate.main()
