"""Gate: the house stands as it was drawn.

Invariants:
- imports lead down the floors; no cycle between files or units
- env loads no torch, numpy, transformers: neither by its source nor in a fresh interpreter
- units on the update's path never import env and never name a verdict's ground truth
- the training loop never asks which intervention it runs
- files have at most 300 lines, functions at most 80; every module says what it is for
- words to avoid do not occur; no file speaks of one machine or of how the work was done; the lock names one index
- each rule reports a planted breach, and reports none on a clean package
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import _rules as rules
from _gate import Gate, Skip
from _source import Module, Package

ROOT = Path(__file__).parents[1]
TEXT = {".py", ".md", ".toml", ".txt", ".jsonl", ".json", ".tex", ".html", ".css", ".js", ".yaml", ".yml", ".bib", ""}
gate = Gate(__doc__)


@cache
def package() -> Package:
    return Package(ROOT / "src" / "vgrout")


@cache
def scripts() -> list[Module]:
    files = sorted((ROOT / "scripts").rglob("*.py"))
    return [Module(str(f.relative_to(ROOT)), f, f.read_text(encoding="utf-8")) for f in files]


@cache
def texts() -> dict[str, str]:
    """Text files of the checkout that git tracks or would track; all of src, scripts and docs where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [ROOT / name for name in listed if name]
    except (FileNotFoundError, subprocess.CalledProcessError):
        paths = [path for folder in ("src", "scripts", "docs") for path in (ROOT / folder).rglob("*")]
        paths += [ROOT / name for name in ("README.md", "AGENTS.md", "justfile", "pyproject.toml", "out/README.md")]
    kept = [path for path in paths if path.is_file() and path.suffix in TEXT]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8", errors="replace") for path in kept}


def none_of(breaches: list[str]) -> None:
    assert not breaches, f"{len(breaches)} breaches:\n  " + "\n  ".join(breaches[:40])


@gate.invariant("imports lead down the floors")
def _():
    none_of(rules.floors(package()))
    return f"{len(package().modules)} modules, {len(package().imports)} imports inside the package"


@gate.invariant("no cycle between files or units")
def _():
    none_of(rules.circles(package()))
    return f"{len(package().units)} units"


@gate.invariant("env and types import no torch, numpy, transformers, pandas")
def _():
    none_of(rules.torch_free(package()))
    return f"{len(package().of('env', 'types'))} modules read"


@gate.invariant("a fresh interpreter that imports all of env has not loaded torch, numpy or transformers")
def _():
    names = [f"vgrout.{module.name}" for module in package().of("env", "types") if module.name != "env.child"]
    if "vgrout.env.grader" not in names:
        raise Skip("vgrout.env.grader does not exist")
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print([name for name in {rules.NO_TORCH!r} if name in sys.modules])"
    )
    clean = {key: value for key, value in os.environ.items() if key != "VGROUT_TYPECHECK"}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", done.stdout
    return f"{len(names)} modules imported"


@gate.invariant("units on the update's path neither import env nor name a verdict's ground truth")
def _():
    none_of(rules.oracle(package()))
    return f"{len(package().of(*rules.BLIND))} modules of {', '.join(sorted(package().units & set(rules.BLIND)))}"


@gate.invariant("the training loop never asks which intervention it runs")
def _():
    if "train" not in package().units:
        raise Skip("vgrout.train does not exist")
    none_of(rules.loop_branches(package()))
    return f"{len(rules.intervention_names(package()))} names looked for"


@gate.invariant("files have at most 300 lines, functions at most 80")
def _():
    modules = [*package().modules.values(), *scripts()]
    none_of(rules.sizes(modules))
    longest = max((m for m in modules if not m.name.startswith(rules.CONTENT)), key=lambda module: module.lines)
    lines, function = max(found for module in modules for found in rules.functions(module))
    own = sum(module.lines for module in package().modules.values())
    return f"package {own} lines; longest file {longest.name} {longest.lines}, function {function} {lines}"


@gate.invariant("every module says what it is for")
def _():
    modules = [*package().modules.values(), *scripts()]
    none_of(rules.docstrings(modules))
    return f"{len(modules)} modules"


@gate.invariant("words to avoid do not occur")
def _():
    line, words = rules.avoided_words(ROOT / "AGENTS.md")
    assert len(words) >= 4, "AGENTS.md lists the words to avoid on a line that starts with '- Words to avoid'"
    none_of(rules.vocabulary(texts(), words, line))
    return f"{len(words)} words, {len(texts())} files"


@gate.invariant("no file speaks of one machine or of how the work was done")
def _():
    none_of(rules.workplace(texts()))
    return f"{len(rules.WORKPLACE)} patterns, {len(texts())} files"


@gate.invariant("the lock names the public package index alone")
def _():
    none_of(rules.package_indexes((ROOT / "uv.lock").read_text()))
    return "uv.lock"


CLEAN = {
    "__init__.py": '"""Root."""\n',
    "types.py": '"""Records."""\nX = 1\n',
    "env/__init__.py": "",
    "env/grader.py": '"""Grades."""\nfrom vgrout.types import X\n',
    "grpo.py": '"""Loss."""\nimport torch\nfrom vgrout.types import X\n',
    "interventions/__init__.py": '"""Table."""\nfrom vgrout.grpo import X as Mine\nALL = {"mine": Mine}\n',
    "train.py": '"""Loop."""\nfrom vgrout.env.grader import X\nfrom vgrout.interventions import ALL\ny = X == "fp32"\n',
}


def planted(files: dict[str, str], rule: Callable[[Package], list[str]]) -> list[str]:
    """What a rule reports about the clean package with these files on top; it must report nothing without them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "vgrout"
        for name, text in CLEAN.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        none_of(rule(Package(root)))
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return rule(Package(root))


def _sizes(package: Package) -> list[str]:
    return rules.sizes(package.modules.values())


def _docstrings(package: Package) -> list[str]:
    return rules.docstrings(package.modules.values())


PLANTED: list[tuple[str, str, Callable[[Package], list[str]]]] = [
    ("grpo.py", "from vgrout.interventions import ALL", rules.floors),
    ("grpo.py", "def f():\n    from .train import y", rules.floors),
    ("grpo.py", "from . import env", rules.floors),
    ("grpo.py", "import vgrout.env.grader", rules.floors),
    ("novel.py", "", rules.floors),
    ("types.py", "import vgrout", rules.floors),
    ("env/a.py", "from vgrout.env.a import b", rules.circles),
    ("env/grader.py", "from ..train import y", rules.circles),
    ("env/grader.py", "import numpy as np", rules.torch_free),
    ("env/deep/x.py", "def f():\n    from torch import nn", rules.torch_free),
    ("interventions/bad.py", "from vgrout.env.grader import X", rules.oracle),
    ("rollout/bad.py", "import importlib\nimportlib.import_module('vgrout.env.grader')", rules.oracle),
    ("update.py", "from vgrout.types import Verdict", rules.oracle),
    ("update.py", "def f(seen): return seen.exploited", rules.oracle),
    ("adapter/x.py", "def f(v): return getattr(v, 'gt_correct')", rules.oracle),
    ("train.py", "if config.intervention == 'absorb': pass", rules.loop_branches),
    ("train.py", "if name in ('mine', 'x'): pass", rules.loop_branches),
    ("train.py", "match name:\n    case 'none': pass", rules.loop_branches),
    ("train.py", "isinstance(intervention, Absorb)", rules.loop_branches),
    ("train.py", "isinstance(config.intervention, Absorb)", rules.loop_branches),
    ("types.py", "\n" * 301, _sizes),
    ("types.py", "def f():\n" + "    x = 1\n" * 80, _sizes),
    ("policy.py", "X = 1", _docstrings),
]


@gate.invariant("each rule about source reports a planted breach and none on a clean package")
def _():
    for file, text, rule in PLANTED:
        assert planted({file: text}, rule), f"{rule} does not report {file}: {text[:60]!r}"
    return f"{len(PLANTED)} breaches reported"


@gate.invariant("each rule about wording reports a planted breach")
def _():
    line, words = rules.avoided_words(ROOT / "AGENTS.md")
    for word in words:
        assert len(rules.vocabulary({"a": f"x\n{word.upper()}ly\n{line}"}, words, line)) == 1, word
    planted_lines = (
        "see /ho" + "me/someone/x",
        "the other hel" + "per wrote it",
        "in this ses" + "sion",
        "Iss" + "ue 3 says",
    )
    for text in (*planted_lines, "http://local" + "host:80", "a sub" + "agent"):
        assert len(rules.workplace({"a": text})) == 1, text
    assert rules.package_indexes('url = "https://mirror.example/x"\nurl = "https://pypi.org/s"') == ["mirror.example"]
    return f"{len(words)} words, {len(planted_lines) + 2} workplace lines, 1 index"


if __name__ == "__main__":
    gate.main()
