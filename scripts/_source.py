"""The package as its source says it is: modules, imports, names. Read by the gate on layers; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Module:
    """One file of the package. `name` is dotted without the package (`run.folder`); the package's own file is ``."""

    name: str
    path: Path
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, filename=str(self.path))

    @property
    def unit(self) -> str:
        """The package or file right under the root: what has a floor."""
        return self.name.split(".")[0]

    @property
    def lines(self) -> int:
        return len(self.source.splitlines())


@dataclass(frozen=True)
class Import:
    """One import of a module of the package (dotted, without the package's name) in a line of `module`."""

    module: Module
    target: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.module.path.name}:{self.line}"


class Package:
    """All modules of the package in folder `root` (whose name is the package's)."""

    def __init__(self, root: Path):
        self.root = root
        self.modules: dict[str, Module] = {}
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, path, path.read_text(encoding="utf-8"))

    @property
    def units(self) -> set[str]:
        return {module.unit for module in self.modules.values()} - {""}

    def of(self, *units: str) -> list[Module]:
        return [module for module in self.modules.values() if module.unit in units]

    @cached_property
    def imports(self) -> list[Import]:
        """Every import inside the package, also those in functions and under TYPE_CHECKING."""
        return [found for module in self.modules.values() for found in self._imports_of(module)]

    def _imports_of(self, module: Module) -> Iterator[Import]:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._inside(module, alias.name, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                base = self._base(module, node)
                for alias in node.names:
                    dotted = f"{base}.{alias.name}"
                    is_module = dotted.removeprefix(f"{self.root.name}.") in self.modules
                    yield from self._inside(module, dotted if is_module else base, node.lineno)

    def _base(self, module: Module, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        here = [self.root.name, *(module.name.split(".") if module.name else [])]
        if module.path.name != "__init__.py":
            here.pop()
        here = here[: len(here) - (node.level - 1)]
        return ".".join([*here, *([node.module] if node.module else [])])

    def _inside(self, module: Module, dotted: str, line: int) -> Iterator[Import]:
        if dotted == self.root.name:
            yield Import(module, "", line)
        elif dotted.startswith(f"{self.root.name}."):
            yield Import(module, dotted.removeprefix(f"{self.root.name}."), line)


def outside_imports(module: Module) -> Iterator[tuple[str, int]]:
    """(top-level name, line) of every import of a module, absolute ones only."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0], node.lineno


def names_used(module: Module) -> Iterator[tuple[str, int]]:
    """(name, line) of every identifier, attribute, keyword, imported name, and of every string that is one name."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.keyword | ast.arg) and node.arg:
            yield node.arg, node.lineno
        elif isinstance(node, ast.alias):
            yield node.name, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Closed paths in a directed graph: one for each edge that leads back into the depth-first path."""
    found: list[list[str]] = []
    state: dict[str, str] = {}

    def visit(node: str, path: list[str]) -> None:
        state[node] = "open"
        for target in sorted(edges.get(node, ())):
            if state.get(target) == "open":
                found.append([*path[path.index(target) :], target])
            elif target not in state:
                visit(target, [*path, target])
        state[node] = "done"

    for node in sorted(edges):
        if node not in state:
            visit(node, [node])
    return found
