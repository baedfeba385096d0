"""A run that is killed or stopped ends, resumed, as if nothing had happened. Kills in every phase: verify_kills_*.py.

Invariants:
- SIGKILL in the middle of the update: the resumed run has the weights, metrics, rollouts and evaluation of an unbroken one
- a finished run, a run that another process trains, a changed setting and a changed input are refused by name
- a first Ctrl-C ends the run after its step with a state, a second one at once; both resume to the unbroken run,
  and so does one that came before the first step
- grader servers that are killed in the middle of a step change nothing, or stop the run safely
"""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

from _gate import Gate
from _kill import Blow, attempt, require_equal, result
from _resuming import arguments, folder, log, refusal, resume, survives, unbroken
from vgrout import opening
from vgrout.run.heartbeat import Heartbeat, Lock
from vgrout.run.states import newest_update

gate = Gate(__doc__)


@gate.invariant(
    "a run killed in the middle of an update resumes to the weights, logs and evaluation of an unbroken one"
)
def _():
    last = 3  # so that a finished step, with its logs, lies behind the state
    survives("routeV", "once", Blow("update", last, random.Random(1).random() * unbroken("routeV")[1]["update", last]))
    found = result(folder("once"))
    assert found["metrics"] and any(row["grad_norm"] for row in found["metrics"]), "nothing was trained"
    return f"{len(found['metrics'])} steps, {len(found['rollouts'])} rollouts"


@gate.invariant("a finished run, a live one, a changed setting and a changed input are refused by name")
def _():
    unbroken("none")
    name = "none-unbroken"
    assert "finished" in refusal(name)
    survivor = "refused"
    assert attempt(arguments("none", survivor), log(survivor), Blow("update", 3, 0.01)) == -signal.SIGKILL
    assert "model.seed" in refusal(survivor, "--model.seed", "1", "--override")
    said = refusal(survivor, "--optim.lr", "0.5", "--rollout.max-new", "7")
    assert all(part in said for part in ("optim.lr", "0.001", "0.5", "rollout.max_new", "--override")), said
    assert "preset" in refusal(survivor, "micro")
    assert "adapter.rank" in refusal(survivor, "--adapter.rank", "8", "--override")
    held = Lock(folder(survivor))
    assert "another process" in refusal(survivor)
    held.release()
    before = {path: path.read_bytes() for path in folder(survivor).rglob("*.jsonl*")}
    assert all(path.read_bytes() == content for path, content in before.items()), "a refusal has changed the logs"
    assert resume(survivor, "--optim.lr", "0.002", "--override") == 0, log(survivor).read_text()[-2000:]
    rates = [row["lr"] for row in result(folder(survivor))["metrics"]]
    assert max(rates) > 0.001 and json.loads((folder(survivor) / "config.json").read_text())["optim"]["lr"] == 0.002
    resumes = (folder(survivor) / "resumes.jsonl").read_text()
    assert "optim.lr" in resumes, resumes
    return "7 refusals; an override is taken over and recorded"


@gate.invariant(
    "a first Ctrl-C stops after the step with a state, a second one at once; both resume to the same end", slow=True
)
def _():
    for name, blow, wanted in (
        ("once-c", Blow("generate", 0, 0.0, signal.SIGINT), 1),
        ("twice-c", Blow("generate", 2, 0.0, signal.SIGINT, again=0.05), 2),
        ("term", Blow("update", 2, 0.0, signal.SIGTERM), 3),
        ("last", Blow("update", 3, 0.0, signal.SIGINT), 4),
        ("end", Blow("evaluate", 4, 0.0, signal.SIGTERM), 4),
    ):
        code = attempt(arguments("absorb", name), log(name), blow)
        text = log(name).read_text()
        assert code == 130 and "--resume" in text and "Traceback" not in text, (name, code, text[-2000:])
        assert newest_update(folder(name)) == wanted, (name, newest_update(folder(name)))
        assert json.loads((folder(name) / "status.json").read_text())["state"] == "stopped"
        assert resume(name) == 0, log(name).read_text()[-2000:]
        require_equal(result(folder(name)), unbroken("absorb")[0], name)
    return "SIGINT, SIGINT twice, SIGTERM, SIGINT in the last step, SIGTERM in the evaluation"


def interrupted_early() -> None:
    """In the child: Ctrl-C while the run's first files are written."""
    opening.save_partition = lambda *args, **more: os.kill(os.getpid(), signal.SIGINT)  # ty: ignore[invalid-assignment]


@gate.invariant("Ctrl-C before the first step names the command that continues as well")
def _():
    code = attempt(arguments("none", "early"), log("early"), before=interrupted_early)
    text = log("early").read_text()
    assert code == 130 and f"--resume {folder('early')}" in text and "Traceback" not in text, (code, text[-1000:])
    assert json.loads((folder("early") / "status.json").read_text())["state"] == "stopped"
    assert resume("early") == 0, log("early").read_text()[-2000:]
    require_equal(result(folder("early")), unbroken("none")[0], "early")
    return text.strip().splitlines()[-1][:60]


def grader_killed() -> None:
    """In the child: as step 2 begins to sample, every server of the grader is killed."""
    at = Heartbeat.at

    def heard(self: Heartbeat, step: int, phase: str) -> None:
        at(self, step, phase)
        if (step, phase) == (2, "generate"):
            for name in Path("/proc").iterdir():
                if name.name.isdecimal() and _is_own_server(name):
                    os.kill(int(name.name), signal.SIGKILL)

    Heartbeat.at = heard


def _is_own_server(process: Path) -> bool:
    try:
        parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        return int(parent) == os.getpid() and b"env/server.py" in (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


@gate.invariant(
    "a grader whose servers are killed in the middle of a step changes nothing, or stops the run safely", slow=True
)
def _():
    code = attempt(arguments("none", "graderless"), log("graderless"), before=grader_killed)
    text = log("graderless").read_text()
    assert code == 0 or (code == 2 and "--resume" in text and "Traceback" not in text), (code, text[-1500:])
    if code:
        assert resume("graderless") == 0, log("graderless").read_text()[-1500:]
    require_equal(result(folder("graderless")), unbroken("none")[0], "servers killed")
    return "went on" if code == 0 else "stopped and resumed"


if __name__ == "__main__":
    gate.main()
