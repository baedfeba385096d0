"""Processes that are stopped from outside, and scratch folders that vanish, change no verdict.

Invariants:
- a fork-server stopped before its fork or beside its child, or a child stopped for good, is no time of the program's
- a child that the kernel takes apart slowly ends as it ended; one that closes its report and stays is ended as well
- scratch folders that something removes in the middle of a batch are made again: no verdict is lost, none differs
- the half-written file that a killed writer leaves is removed by the next one, and no living writer's
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

from _attack_world import TOTAL, children_of
from _gate import Gate
from _grading import LIMIT, answer, by_and_by, opened, prompt, servers_of
from vgrout.env import runner as runner_module
from vgrout.env import watch
from vgrout.env.files import written_atomically
from vgrout.env.grader import Grader

gate = Gate(__doc__)
RIGHT = "return sum(n * n + 7 for n in nums)"
PAUSE = "import time\ntime.sleep(0.5 if len(nums) == 3 else 0)\n" + RIGHT
STOP_S = 2.5
"""Longer than the wall backstop of these graders."""


@gate.invariant("a stopped fork-server or child is no time of the program's, wherever it is stopped")
def _():
    made = 0
    for body, late in (("import time\ntime.sleep(0.02)\n" + RIGHT, 0.0), (RIGHT, 0.0), (PAUSE, 0.2)):
        with opened() as grader:
            (server,) = servers_of(grader)
            assert not grader.grade(prompt(), answer("return 0")).infra
            if late == 0:
                os.kill(server, signal.SIGSTOP)
            grader.submit("a", prompt(), answer(body))
            if late:
                time.sleep(late)
                os.kill(server, signal.SIGSTOP)
            time.sleep(STOP_S)
            os.kill(server, signal.SIGCONT)
            (verdict,) = grader.collect(["a"])
            assert verdict.gt_correct and servers_of(grader) == [server], (body, verdict)
            made += 1
    with opened() as grader:
        (server,) = servers_of(grader)
        grader.grade(prompt(), answer("return 0"))
        grader.submit("a", prompt(), answer(PAUSE))
        assert by_and_by(lambda: bool(children_of(server)))
        (child,) = children_of(server)
        os.kill(child, signal.SIGSTOP)
        (verdict,) = grader.collect(["a"])
        assert verdict.gt_correct and servers_of(grader) != [server], verdict
    return f"{made + 1} stops"


LARGE = "import os\npages = bytearray(10**8)\n"


@gate.invariant("a child that the kernel takes apart slowly ends as it ended; one that closes its report and stays too")
def _():
    bodies = {
        "leaves": (LARGE + "os._exit(0)", "exit_code", 30),
        "never ends": (LARGE + "while True: pass", "gt_only", 4),
        "stays": (LARGE + "os.close(3)\nwhile True: pass", "gt_only", 4),
    }
    said: Counter = Counter()
    # No time at all to be gone in: whatever a slow machine would need is more.
    with mock.patch.object(watch, "END_S", 0.0), opened() as grader:
        for name, (body, mode, times) in bodies.items():
            for k in range(times):
                v = grader.grade(prompt(mode), answer(f"# {k}\n{body}"))
                assert not v.gt_correct and not v.infra, (name, v)
                said[name, v.channel, v.reason] += 1
    expected = {("leaves", True, "died"): 30, ("never ends", False, "cpu"): 4, ("stays", False, "died"): 4}
    assert said == expected, said
    return f"{sum(said.values())} children"


@gate.invariant(
    "scratch folders that something removes in the middle of a batch are made again, and no verdict differs"
)
def _():
    files = "with open('result.txt', 'w') as f:\n    f.write('PASS')\n"
    wait = "import time\ntime.sleep(0.1 if len(nums) == 3 else 0)\n"
    with Grader([TOTAL], workers=2, cpu_limits=LIMIT) as grader:
        for k in range(24):
            body = (wait + files) + (RIGHT if k % 2 else "return 0")
            grader.submit(str(k), prompt("file_marker" if k % 3 else "gt_only"), answer(f"# {k}\n{body}"))
        with mock.patch.object(runner_module, "RETRY_S", 0.0), mock.patch.object(runner_module, "ATTEMPTS", 40):
            for _ in range(5):
                time.sleep(0.2)
                shutil.rmtree(grader._folder.path, ignore_errors=True)
            verdicts = grader.collect([str(k) for k in range(24)])
    for k, v in enumerate(verdicts):
        assert (v.gt_correct, v.channel, v.infra) == (bool(k % 2), bool(k % 3), False), (k, v)
    assert not grader._folder.path.exists()
    return f"{len(verdicts)} grades, 5 times removed"


@gate.invariant("the half-written file that a killed writer leaves is removed by the next one, and no living writer's")
def _():
    with tempfile.TemporaryDirectory() as name:
        folder, out, long_ago = Path(name), Path(name) / "v.jsonl", time.time() - 3600
        kept = [folder / ".w.jsonl.12345678.tmp", folder / ".v.jsonl.mine.tmp", folder / ".v.jsonl.0000000f.tmp"]
        for path in (killed := folder / ".v.jsonl.12345678.tmp", *kept):
            path.write_text("half")
            os.utime(path, (long_ago, long_ago))
        os.utime(kept[2])
        with written_atomically(out) as first:
            os.utime(first.name, (long_ago, long_ago))
            with written_atomically(out) as second:
                second.write(b"second")
            assert out.read_bytes() == b"second" and not killed.exists()
            first.write(b"first")
        assert out.read_bytes() == b"first" and {*folder.iterdir()} == {out, *kept}
    return "one removed, four kept"


if __name__ == "__main__":
    gate.main()
