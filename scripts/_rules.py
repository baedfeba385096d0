"""The rules of the house, each a function from source to a list of breaches in plain words. See verify_layers.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from _source import Module, Package, cycles, names_used, outside_imports

FLOORS = {
    "cli": 16,
    "arguments": 8,
    "demo": 15,
    "reevaluate": 13,
    "sample": 13,
    "export": 14,
    "study": 14,
    "micro_commands": 13,
    "parallel": 13,
    "train": 12,
    "opening": 11,
    "dry_run": 10,
    "doctor": 10,
    "plan": 8,
    "estimate": 3,
    "session": 10,
    "final": 8,
    "curve": 8,
    "stored": 7,
    "resume": 9,
    "tripwires": 5,
    "measure": 7,
    "diagnosis": 6,
    "inputs": 7,
    "labelled": 6,
    "direction_inputs": 7,
    "direction_figure": 7,
    "direction_check": 8,
    "problem_files": 8,
    "presets": 7,
    "update": 6,
    "observe": 6,
    "selectivity": 6,
    "splits": 6,
    "config": 6,
    "interventions": 5,
    "evals": 5,
    "report": 5,
    "directions": 4,
    "rollout": 3,
    "results": 3,
    "runs_table": 6,
    "micro": 3,
    "policy": 3,
    "optim": 3,
    "grpo": 2,
    "adapter": 2,
    "env": 2,
    "run": 2,
    "models": 2,
    "types": 1,
    "cores": 1,
}
"""A unit (package or file right under the root) imports units of lower floors only."""

BLIND = ("interventions", "directions", "update", "adapter", "grpo", "optim", "policy", "rollout")
"""Units that may not see the environment or its verdicts: nothing in them can let the oracle reach an update."""

ORACLE_NAMES = ("Verdict", "gt_correct", "exploited", "hack_broad")
NO_TORCH = ("torch", "numpy", "transformers", "pandas")
INTERVENTIONS = (
    *("none", "none_full", "erase", "absorb", "routeV", "routeA", "moe"),
    *("label_route", "advantage_mod", "penalty", "screening"),
)
MAX_FILE, MAX_FUNCTION = 300, 80
CONTENT = "scripts/builtin/"
"""Problem statements and their solutions, kept as Python: their length is that of the text, so it has no limit."""

# Letters in brackets keep a pattern from matching its own text here.
WORKPLACE = (
    (r"(?<![\w.])/(?:[w]ork|[h]ome|[U]sers)/\w", "a path of one machine"),
    (r"(?i)\bsub-?[a]gents?\b", "who did the work"),
    (r"(?i)\b(?:the|another|other|my|our|this) [h]elpers? (?:A|B|C|D|did|wrote|owns|session)\b", "who did the work"),
    (r"(?i)\b(?:this|another|previous|earlier) [s]essions?\b", "how the work was organised"),
    (r"(?i)\bissue [#]?[1-9]\b(?! of)", "an issue by number"),
    (r"(?i)\bas an [a]i\b|co-authored-[b]y", "who did the work"),
    (r"https?://(?:[l]ocalhost|127\.|10\.\d|192\.168\.)|\.[i]nternal\b", "an address that only one place knows"),
)


def floors(package: Package) -> list[str]:
    """Imports that do not lead down, and units without a floor."""
    breaches = [f"{unit} has no floor: give it one in FLOORS" for unit in sorted(package.units - FLOORS.keys())]
    for found in package.imports:
        here, there = found.module.unit, found.target.split(".")[0]
        if here == there or not {here, there} <= {"", *FLOORS}:
            continue
        if not here or not there:
            breaches.append(f"{found.place}: the package's own __init__ neither imports nor is imported from")
        elif FLOORS[here] <= FLOORS[there]:
            breaches.append(f"{found.place}: {here} (floor {FLOORS[here]}) imports {there} ({FLOORS[there]})")
    return breaches


def circles(package: Package) -> list[str]:
    """Cycles between files and between units."""
    files: dict[str, set[str]] = {}
    units: dict[str, set[str]] = {}
    for found in package.imports:
        files.setdefault(found.module.name, set()).add(found.target)
        if found.module.unit != found.target.split(".")[0]:
            units.setdefault(found.module.unit, set()).add(found.target.split(".")[0])
    return [" -> ".join(path) for path in (*cycles(files), *cycles(units))]


def torch_free(package: Package, units: Iterable[str] = ("env", "types")) -> list[str]:
    """Imports of heavy libraries in units that must do without."""
    return [
        f"{module.name}:{line} imports {name}"
        for module in package.of(*units)
        for name, line in outside_imports(module)
        if name in NO_TORCH
    ]


def oracle(package: Package) -> list[str]:
    """Blind units that import the environment or name a field of its verdicts."""
    breaches = [
        f"{found.place}: {found.module.unit} imports {found.target}"
        for found in package.imports
        if found.module.unit in BLIND and found.target.split(".")[0] == "env"
    ]
    hidden = re.compile(rf"{package.root.name}\.env(\.\w+)*")
    for module in package.of(*BLIND):
        for name, line in names_used(module):
            if name in ORACLE_NAMES or hidden.fullmatch(name):
                breaches.append(f"{module.name}:{line} names {name}")
    return breaches


def intervention_names(package: Package) -> frozenset[str]:
    """Names that the package's dicts of interventions declare, beside those of the specification."""
    found: set[str] = set(INTERVENTIONS)
    for module in package.of("interventions"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Dict) and node.keys and all(isinstance(v, ast.Name) for v in node.values):
                found |= {k.value for k in node.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}
    return frozenset(found)


def loop_branches(package: Package) -> list[str]:
    """Places where the loop asks which intervention it runs, by name or by class."""
    names, breaches = intervention_names(package), []
    for module in package.of("train"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Compare | ast.MatchValue):
                values = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                if clash := sorted(value for value in values if isinstance(value, str) and value in names):
                    breaches.append(f"{module.name}:{node.lineno} compares with {', '.join(clash)}")
            if isinstance(node, ast.Call) and re.match(r"isinstance\(.*intervention.*,", ast.unparse(node)):
                breaches.append(f"{module.name}:{node.lineno} asks for the intervention's class")
    return breaches


def functions(module: Module) -> list[tuple[int, str]]:
    """(lines, place) of every function of a module."""
    return [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{module.name}.{node.name}")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def sizes(modules: Iterable[Module]) -> list[str]:
    """Files and functions that are too long."""
    breaches = []
    for module in modules:
        if module.lines > MAX_FILE and not module.name.startswith(CONTENT):
            breaches.append(f"{module.name}: {module.lines} lines (at most {MAX_FILE})")
        breaches += [
            f"{place}: {n} lines (at most {MAX_FUNCTION})" for n, place in functions(module) if n > MAX_FUNCTION
        ]
    return breaches


def docstrings(modules: Iterable[Module]) -> list[str]:
    """Modules that hold code but do not say what they are for."""
    return [f"{m.name or m.path.name}: no docstring" for m in modules if m.tree.body and not ast.get_docstring(m.tree)]


def avoided_words(agents: Path) -> tuple[str, tuple[str, ...]]:
    """The line of AGENTS.md that lists the words to avoid, and the words in backticks on it after the colon."""
    for line in agents.read_text(encoding="utf-8").splitlines():
        if line.startswith("- Words to avoid"):
            return line, tuple(re.findall(r"`(\w+)`", line))
    return "", ()


def vocabulary(texts: dict[str, str], words: tuple[str, ...], allowed_line: str) -> list[str]:
    """Lines that hold a word to avoid, the list itself apart."""
    pattern = re.compile("|".join(words), re.IGNORECASE)
    return [
        f"{name}:{number}: {match.group()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if line != allowed_line and (match := pattern.search(line))
    ]


def workplace(texts: dict[str, str]) -> list[str]:
    """Lines that speak of a particular machine or of how the work was done."""
    return [
        f"{name}:{number}: {meaning}: {match.group()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern, meaning in WORKPLACE
        if (match := re.search(pattern, line))
    ]


def package_indexes(lock: str) -> list[str]:
    """Hosts in a lock file other than the public package index."""
    hosts = set(re.findall(r"https?://([^/\"]+)", lock))
    return sorted(hosts - {"pypi.org", "files.pythonhosted.org"})
