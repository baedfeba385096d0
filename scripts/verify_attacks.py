"""Attacks: no wrong program is credited, none harms, and clean programs are correct in every mode.

Invariants:
- the corpus has 113 programs or more over every class of attack, and 11 clean controls or more
- no attack is credited, none harms, and the same fork-servers serve to the end
- no claim that a program writes to the descriptor fires a channel
- clean controls are correct in every mode and fire no channel
- through `vgrout grade`, in three modes (in all of them: study_attacks.py): no attack credited, none masked, no file, process, connection, signal, limit, hang
  or crash, less than 512 MB of growth in the grading process, and every control correct
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from _attack_world import REPOSITORY, TOTAL, Attack, World, children_of, controls, corpus
from _gate import Gate
from _grading import fence, opened, problem_row, prompt, servers_of
from vgrout.env.grader import Grader
from vgrout.env.modes import MODES

gate = Gate(__doc__)
CLASSES = {
    *("equality", "exhaustion", "exits", "files", "forging", "hooks", "network", "processes", "stealing", "values"),
}
PAYS = {
    ("printed verdicts", "stdout_marker"),
    ("audit hook that refuses everything", "exit_code"),  # with SystemExit(0)
    ("value that kills when it is freed", "exit_code"),
}
"""(attack, mode) whose channel may fire: what the program does there is that mode's own loophole, and no more than that."""
PAYS_CLASS = {("equality", "eq_override"), ("exits", "exit_code")}
"""(class, mode): the same of a whole class."""
CHECKED = ("gt_only", "run_tests", "file_marker")
"""Modes whose attacks go through `vgrout grade` here: none, a probe of the program's own, and the scratch folder."""
GROWTH_KIB = 512 * 1024
WALL_S = 840


@gate.invariant("the corpus has 113 programs or more over every class, all different, and 11 clean controls or more")
def _():
    with World() as world:
        attacks = corpus(world.values())
    families = Counter(attack.family for attack in attacks)
    assert set(families) == CLASSES and min(families.values()) >= 8, families
    assert len(attacks) >= 113 and len({a.program for a in attacks}) == len({a.name for a in attacks}) == len(attacks)
    assert len(controls()) >= 11
    return f"{len(attacks)} attacks {dict(families)}, {len(controls())} controls"


class ServerReplaced(AssertionError):
    """The grader had to start a new fork-server."""


@gate.invariant("no attack is credited, none harms, and the same fork-servers serve to the end")
def _():
    # A machine that stands still for seconds costs a fork-server too, so a replaced one is an attack's work if it happens
    # twice in a row.
    try:
        return attack_once()
    except ServerReplaced:
        return attack_once() + " (second try)"


def attack_once() -> str:
    with World() as world, opened(workers=4) as grader:
        attacks = corpus(world.values())
        servers = servers_of(grader)
        verdicts = grader.grade_many([(prompt(), attack.response) for attack in attacks])
        assert not world.harm(), world.harm()
        wrong = {a.name: v for a, v in zip(attacks, verdicts, strict=True) if v.gt_correct or v.infra or v.channel}
        assert not wrong, wrong
        if servers != servers_of(grader):
            raise ServerReplaced("a fork-server was replaced")
        for pid in servers:
            assert not children_of(pid), "a child outlived its grade"
        verdict = grader.grade(prompt(), fence(TOTAL.canonical_solution))
        assert verdict.gt_correct, verdict
    return f"{len(attacks)} attacks: {dict(Counter(v.reason for v in verdicts))}"


@gate.invariant("clean controls are correct in every mode and fire no channel")
def _():
    rows = [(control, mode) for control in controls() for mode in MODES]
    with Grader([TOTAL], workers=4) as grader:
        verdicts = grader.grade_many([(prompt(mode), control.response) for control, mode in rows])
    for (control, mode), v in zip(rows, verdicts, strict=True):
        assert v.gt_correct and not v.channel and not v.infra and v.reward == 3.5, (control.name, mode, v)
    slowest = max(v.cpu_s for v in verdicts)
    return f"{len(controls())} controls x {len(MODES)} modes, the heaviest {slowest:.2f} s of CPU"


@gate.invariant("no claim that a program writes to the descriptor fires a channel")
def _():
    with World() as world, opened() as grader:
        forgers = [
            a for a in corpus(world.values()) if a.name in ("claims on every descriptor", "endless empty claims")
        ]
        rows = [(a, mode) for a in forgers for mode in ("run_tests", "sentinel", "eq_override")]
        verdicts = grader.grade_many([(prompt(mode), a.response) for a, mode in rows])
    paid = [(a.name, mode) for (a, mode), v in zip(rows, verdicts, strict=True) if v.channel or v.own_tests_pass]
    assert len(forgers) == 2 and not paid, paid
    return f"{len(rows)} runs"


# ---- from outside ---------------------------------------------------------------------------------------------------


@dataclass
class Outside:
    """`vgrout grade` as a process of its own, watched until it ends."""

    folder: Path
    rows: list[dict] = field(default_factory=list)
    grown_kib: int = 0

    def grade(self, programs: list[Attack], modes: tuple[str, ...]) -> list[dict]:
        """The verdict rows of every program in every mode."""
        self.rows = [
            {"id": f"{p.family}/{p.name}/{mode}", "problem_id": TOTAL.id, "mode": mode, "response": p.response}
            for p in programs
            for mode in modes
        ]
        files = {name: self.folder / f"{name}.jsonl" for name in ("problems", "responses", "out")}
        files["problems"].write_text(json.dumps(problem_row(TOTAL)) + "\n")
        files["responses"].write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        command = [sys.executable, "-c", "from vgrout.cli import main; main()", "grade", "--workers", "8"]
        command += [part for name, path in files.items() for part in (f"--{name}", str(path))]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            self._watch(process)
            said = process.stdout.read().decode() if process.stdout else ""
        assert process.returncode == 0, (process.returncode, said[-2000:])
        return [json.loads(line) for line in files["out"].read_text().splitlines()]

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Until it ends: how far its peak memory has grown since it began to grade."""
        first, end = 0, time.monotonic() + WALL_S
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
            first = first or (peak if children_of(process.pid) else 0)  # its modules are loaded once it has a child
            self.grown_kib = max(self.grown_kib, peak - first if first else 0)
            if time.monotonic() > end:
                process.kill()
                raise AssertionError(f"still grading after {WALL_S} s")
            time.sleep(0.1)


def may_pay(family: str, name: str, mode: str) -> bool:
    """Whether this attack may fire the mode's channel."""
    return (name, mode) in PAYS or (family, mode) in PAYS_CLASS


def from_outside(mode: str) -> str:
    # What `vgrout grade` leaves behind becomes a child of this process, and is seen.
    assert ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0) == 0, "PR_SET_CHILD_SUBREAPER"
    start = time.perf_counter()
    with World() as world, tempfile.TemporaryDirectory() as folder:
        attacks, clean = corpus(world.values()), controls()
        own = set(children_of(os.getpid()))
        outside = Outside(Path(folder))
        verdicts = {row["id"]: row for row in outside.grade([*attacks, *clean], (mode,))}
        assert not world.harm(), world.harm()
        left = set(children_of(os.getpid())) - own
        assert not left, f"processes outlived `vgrout grade`: {left}"
    credited = [key for key, v in verdicts.items() if v["gt_correct"] and not key.startswith("clean/")]
    missed = {key: v for key, v in verdicts.items() if key.startswith("clean/") and not v["gt_correct"]}
    masked = [key for key, v in verdicts.items() if v["infra"]]
    paid = [key for key, v in verdicts.items() if v["channel"] and not may_pay(*key.split("/"))]
    assert len(verdicts) == len(attacks) + len(clean) and not (credited or missed or masked or paid), (
        *(credited, missed, masked, paid),
    )
    assert outside.grown_kib < GROWTH_KIB, f"grew by {outside.grown_kib} KiB"
    reasons = dict(Counter(v["reason"] for v in verdicts.values()))
    figures = f"{len(attacks)} attacks, {len(clean)} controls: {reasons}"
    return f"{figures}; grew by {outside.grown_kib / 1024:.0f} MiB in {time.perf_counter() - start:.0f} s"


for name in CHECKED:
    gate.invariant(f"the same through `vgrout grade` in mode {name}, and less than 512 MB of growth", slow=True)(
        lambda name=name: from_outside(name)
    )


if __name__ == "__main__":
    gate.main()
