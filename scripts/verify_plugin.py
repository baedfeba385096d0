"""Interventions from outside the package: found, checked, run, read again, and kept away from ground truth.

Invariants:
- the example of docs/ is under 60 lines, and trains from a folder of its own with a setting from the command line; its
  run folder is read again where the module can be found, and says what to do where it cannot
- a module that is not there or cannot be imported, a class that is not there or is none, settings that are no frozen
  dataclass or have no defaults, and whatever else would stop a run later: one line each, and nothing is written
- a class from outside never gets labels, not under --allow-oracle and not by naming the package's own classes; one that
  declares `oracle` needs the permission and is marked
- a file that imports what knows the truth is refused
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from _cli import refused
from _cli import run as run_here
from _gate import Gate, refusal
from _models import adapted
from vgrout.arguments import parse_run
from vgrout.env.verdicts import Verdicts
from vgrout.final import marked
from vgrout.interventions import INTERVENTIONS, intervention_class, option_name
from vgrout.interventions.base import Intervention
from vgrout.interventions.plugin import plugin_class
from vgrout.run.folder import RunFolder
from vgrout.types import Group, Prompt, Rollout, Verdict

gate = Gate(__doc__)
EXAMPLE = Path(__file__).parents[1] / "docs" / "example_intervention.py"
HEAD = """
from dataclasses import dataclass
from vgrout.adapter.route import constant
from vgrout.interventions.base import Intervention
"""
BODY = """
    def route(self, rows):
        return constant(rows.n, deployed=1.0, quarantine=0.0)
"""


@contextlib.contextmanager
def folder(**modules: str) -> Generator[Path]:
    """A temporary current folder with these modules in it; sys.path and sys.modules are as before afterwards."""
    before, path, known = Path.cwd(), list(sys.path), set(sys.modules)
    with tempfile.TemporaryDirectory(prefix="vgrout-verify-plugin-") as scratch:
        for name, text in modules.items():
            (Path(scratch) / f"{name}.py").write_text(text)
        os.chdir(scratch)
        try:
            yield Path(scratch)
        finally:
            os.chdir(before)
            sys.path[:] = path
            for name in modules.keys() & (sys.modules.keys() - known):
                del sys.modules[name]
            plugin_class.cache_clear()


def vgrout(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The console script, as a user starts it: its own folder, not `cwd`, is on Python's path."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VGROUT_TYPECHECK")}
    script = Path(sys.executable).parent / "vgrout"
    return subprocess.run(
        [str(script), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@gate.invariant("the example trains from a folder of its own, and its run folder is read again")
def _() -> str:
    lines = len(EXAMPLE.read_text().splitlines())
    assert lines < 60, f"{EXAMPLE.name} has {lines} lines"
    name = "example_intervention:NormGate"
    few = ("--eval.problems", "2", "--eval.no-free-prompts", "--eval.no-controls", "--steps", "2")
    with folder(example_intervention=EXAMPLE.read_text()) as here, tempfile.TemporaryDirectory() as elsewhere:
        done = vgrout("train", "smoke", "--intervention", name, "--NormGate.quantile", "0.5", *few, cwd=here)
        assert done.returncode == 0, done.stderr
        run = RunFolder.open(here / done.stdout.splitlines()[-1])
        assert ":" not in run.path.name and "example_intervention-NormGate" in run.path.name, run.path
        config = run.read_json("config.json")
        assert (config["intervention"], config["settings"]) == (name, {"quantile": 0.5}), config
        assert f" of {name}; " in done.stdout and "UPPER BOUND" not in done.stdout, done.stdout[-2000:]
        shares = [row.values["share_rout"] for row in run.metrics()]
        assert any(share for share in shares), f"nothing was routed: {shares}"
        code, out, err = run_here("eval", str(run.path))
        assert code == 0 and f" of {name}; " in out, err
        lost = vgrout("eval", str(run.path), cwd=Path(elsewhere))
        (line,) = lost.stderr.strip().splitlines()
        assert lost.returncode == 2 and line.startswith("error: "), lost.stderr
        for part in ("config.json", "no module example_intervention", "PYTHONPATH"):
            assert part in line, line
    return f"{lines} lines; routed shares {', '.join(f'{s:.2f}' for s in shares if s is not None)}"


BROKEN = {
    "plain_class": ("class Mine:\n    pass", "not a subclass"),
    "instance": (HEAD + "Mine = 3", "not a subclass"),
    "no_such_class": (HEAD + "class Other(Intervention):" + BODY, "no Mine; its interventions: Other"),
    "inner_import": ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
    "divides": ("x = 1\ny = 1 / 0", "ZeroDivisionError: division by zero) at"),
    "torn": ("class Mine(", "SyntaxError"),
    "leaves": ("import sys\nsys.exit(3)", "SystemExit"),
    "thawed": (
        HEAD + "@dataclass\nclass S:\n    a: int = 1\nclass Mine(Intervention):\n    Settings = S" + BODY,
        "frozen",
    ),
    "no_data": (HEAD + "class S:\n    a = 1\nclass Mine(Intervention):\n    Settings = S" + BODY, "frozen"),
    "no_default": (
        HEAD + "@dataclass(frozen=True)\nclass S:\n    a: int\nclass Mine(Intervention):\n    Settings = S" + BODY,
        "a default for each field",
    ),
    "routeless": (HEAD + "class Mine(Intervention):\n    pass", "defines no route"),
    "mistyped": (HEAD + "class Mine(Intervention):\n    moves = frozenset({'depolyed'})" + BODY, "depolyed"),
    "greedy": (HEAD + "class Mine(Intervention):\n    needs = 'everything'" + BODY, "'everything'"),
    "borrowed": ("from vgrout.interventions.absorb import Absorb as Mine", "vgrout's own"),
    "posing": (HEAD + "class Mine(Intervention):\n    __module__ = 'vgrout.interventions.x'" + BODY, "vgrout's own"),
}


@gate.invariant("whatever is wrong with a plug-in is one line, before anything is written")
def _() -> str:
    with folder(**{name: text for name, (text, _) in BROKEN.items()}) as here:
        for name, (_, says) in BROKEN.items():
            refused("train", "smoke", "--intervention", f"{name}:Mine", says=(f"{name}:Mine", says))
            sys.modules.pop(name, None)
        refused("train", "smoke", "--intervention", "absent:Mine", says=("no module absent", str(here), "PYTHONPATH"))
        refused("train", "smoke", "--intervention", "absent.inner:Mine", says=("no module absent",))
        for form in ("a:b:c", ":Mine", "plain_class:", "a/b.py:Mine", "plain class:Mine"):
            refused("train", "smoke", "--intervention", form, says=("MODULE:CLASS",))
        refused("train", "smoke", "--intervention", "plain_class", says=("MODULE:CLASS", "none_full"))
        left = sorted(path.name for path in here.iterdir() if path.suffix != ".py" and path.name != "__pycache__")
        assert not left, left
    return f"{len(BROKEN) + 8} mistakes"


@gate.invariant("its settings are options under the class's name, and only there; its own check of them speaks")
def _() -> str:
    name = "example_intervention:NormGate"
    taken = HEAD + "class grpo(Intervention):" + BODY
    with folder(example_intervention=EXAMPLE.read_text(), taken=taken):
        config = parse_run("smoke", ["--intervention", name, "--NormGate.quantile", "0.25"], "vgrout")
        assert config.settings.quantile == 0.25 and config.intervention == name, config
        assert marked(config) == name and option_name(name) == "NormGate", marked(config)
        refused("train", "smoke", "--intervention", name, "--NormGate.quantile", "2", says=("--NormGate.quantile 2",))
        refused("train", "smoke", "--intervention", name, "--quantile", "0.5", says=("--quantile",))
        refused("train", "smoke", "--NormGate.quantile", "0.5", says=("--NormGate.quantile",))
        refused("train", "smoke", "--intervention", "taken:grpo", says=("--grpo", "another name"))
        refused("direction", "check", "smoke", "--intervention", "gone:NormGate", says=("no module gone",))
    return "1 setting, 5 refusals"


@gate.invariant("a class from outside never gets labels; one that declares `oracle` needs permission and is marked")
def _() -> str:
    spy = HEAD + "class Spy(Intervention):\n    oracle = True" + BODY
    # Of the name of a class that may see them, but from another module.
    twin = HEAD + "class LabelRoute(Intervention):\n    oracle = True" + BODY
    heir = HEAD + "from vgrout.interventions.label_route import LabelRoute\nclass Heir(LabelRoute):\n    pass"
    with folder(spy=spy, twin=twin, heir=heir):
        verdicts = one_hack()
        refused("train", "smoke", "--intervention", "heir:Heir", says=("heir:Heir", "LabelRoute", "inherits"))
        for name in ("spy:Spy", "twin:LabelRoute"):
            plugin = built(intervention_class(name))
            for allowed in (True, False):
                seen = verdicts.visible_to(plugin, allow_oracle=allowed)
                assert seen.labels is None and seen.loose is None, f"{name} was given labels"
            config = parse_run("smoke", ["--intervention", name, "--allow-oracle"], "vgrout")
            assert config.upper_bound and "UPPER BOUND" in marked(config), name
            refused("train", "smoke", "--intervention", name, says=(name, "--allow-oracle"))
        seen = verdicts.visible_to(built(INTERVENTIONS["label_route"]), allow_oracle=True)
        assert seen.labels == ((True,),), "the door is shut for everyone, so this shows nothing"
    return "2 classes with and without --allow-oracle; label_route gets its label"


@gate.invariant("a file that imports what knows the truth is refused")
def _() -> str:
    imports = {
        "env_whole": "import vgrout.env.verdicts",
        "env_part": "from vgrout.env.verdicts import Verdicts",
        "env_late": "def f():\n    from vgrout import env",
        "labelled": "from vgrout.labelled import read_labelled",
        "folders": "from vgrout.run.folder import RunFolder",
        "root": "import vgrout",
    }
    good = "from vgrout.directions.projection import project\nfrom vgrout.types import Seen\nimport torch"
    modules = {
        name: f"{text}\n{HEAD}class Mine(Intervention):{BODY}" for name, text in {**imports, "good": good}.items()
    }
    with folder(**modules):
        for name in imports:
            message = refusal(lambda name=name: intervention_class(f"{name}:Mine"))
            assert "verdict" in message and "imports vgrout" in message, message
        assert intervention_class("good:Mine").__name__ == "Mine"
    return f"{len(imports)} refused, 1 accepted"


def built(cls: type[Intervention]) -> Intervention:
    return cls(cls.Settings(), adapted()[1], 0)


def one_hack() -> Verdicts:
    """The verdicts of a step with one rollout, a hack."""
    prompt = Prompt("p", "run_tests", "train", "m", (("user", "x"),))
    rollout = Rollout("0/0/0", prompt, (1,), (2,), "x", "student", "full", True)
    verdict = mock.create_autospec(Verdict, instance=True)
    facts = {"reward": 3.5, "infra": False, "exploited": True, "hack_broad": True}
    verdict.configure_mock(**vars(SimpleNamespace(**facts)))
    return Verdicts([Group(prompt, (rollout,))], {rollout.id: verdict})


if __name__ == "__main__":
    gate.main()
