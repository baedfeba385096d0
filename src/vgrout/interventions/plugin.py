"""An intervention from outside the package: `--intervention MODULE:CLASS`.

The module is looked for in the current folder first, then where Python looks. What can be seen to be wrong with it is
a `UserError` of one line, before anything is loaded or written.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from vgrout.adapter.route import BLOCKS
from vgrout.interventions.base import Intervention, Needs
from vgrout.types import UserError

PACKAGE = __name__.partition(".")[0]
OPEN = ("adapter", "directions", "grpo", "interventions", "types")
"""Parts of the package that a plug-in may import; the others know the truth, or lead to what does."""


@functools.cache
def plugin_class(name: str) -> type[Intervention]:
    """The class that `MODULE:CLASS` names. Raises `UserError` where there is none, or none that can be used."""
    parts = name.split(":")
    if len(parts) != 2 or not all(part.isidentifier() for part in (*parts[0].split("."), parts[1])):
        raise UserError(f"--intervention {name}: expected MODULE:CLASS, as in my_module:MyClass")
    module = _import(parts[0], name)
    cls = getattr(module, parts[1], None)
    if cls is None:
        own = [key for key, value in vars(module).items() if _is_own(value)]
        raise UserError(
            f"--intervention {name}: {module.__file__} has no {parts[1]}; its interventions: {', '.join(own) or 'none'}"
        )
    if not (isinstance(cls, type) and issubclass(cls, Intervention)):
        raise UserError(f"--intervention {name}: not a subclass of {PACKAGE}.interventions.base.Intervention")
    if not _is_own(cls):
        raise UserError(
            f"--intervention {name}: this class is {PACKAGE}'s own ({cls.__module__}); use the plain name of a built-in one"
        )
    _check_imports(cls, name)
    _check_class(cls, name)
    return cls


def _import(module: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:  # a console script's path holds its own folder instead
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"--intervention {name}: no module {error.name} in {here} or where Python looks; run in the folder that holds "
                "it, or name that folder in PYTHONPATH"
            ) from None
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
        raise UserError(
            f"--intervention {name}: importing {module} failed ({type(error).__name__}: {error}){where}; mend it"
        ) from error


def _is_own(value: Any) -> bool:
    """Whether this is an intervention from outside the package."""
    inside = isinstance(value, type) and issubclass(value, Intervention)
    return inside and value.__module__.partition(".")[0] != PACKAGE


def _check_imports(cls: type[Intervention], name: str) -> None:
    """Refuses a file that imports what knows the truth. What its own helpers import is on its author's word."""
    try:
        tree = ast.parse(Path(inspect.getfile(cls)).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, SyntaxError) as error:
        raise UserError(f"--intervention {name}: its source cannot be read ({error}); it must be a .py file") from error
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = node.module == PACKAGE
            found += [f"{PACKAGE}.{alias.name}" for alias in node.names] if whole else [node.module]
    for target in found:
        root, *inner = target.split(".")
        if root == PACKAGE and (not inner or inner[0] not in OPEN):
            raise UserError(
                f"--intervention {name}: imports {target}; of {PACKAGE} an intervention may import {', '.join(OPEN)}, so that "
                "no verdict reaches an update"
            )


def _check_class(cls: type[Intervention], name: str) -> None:
    """Refuses a class that would stop the run later, or could not be read again."""
    if inherited := [
        c.__name__
        for c in cls.__mro__[1:]
        if c.__module__.startswith(f"{PACKAGE}.interventions.") and c is not Intervention
    ]:
        raise UserError(
            f"--intervention {name}: inherits from {inherited[0]}; expected a class of its own, from Intervention"
        )
    settings = cls.Settings
    if not (dataclasses.is_dataclass(settings) and settings.__dataclass_params__.frozen):  # ty: ignore[missing-attribute]
        raise UserError(f"--intervention {name}: its Settings must be a frozen dataclass (@dataclass(frozen=True))")
    try:
        settings()
    except TypeError as error:
        raise UserError(f"--intervention {name}: its Settings need a default for each field ({error})") from error
    if cls.route is Intervention.route and cls.split_tokens is Intervention.split_tokens:
        raise UserError(f"--intervention {name}: defines no route(self, rows); without it no rollout trains anything")
    if cls.needs not in get_args(Needs):
        raise UserError(f"--intervention {name}: needs {cls.needs!r}; expected one of {', '.join(get_args(Needs))}")
    if unknown := sorted(cls.moves - set(BLOCKS)):
        raise UserError(f"--intervention {name}: moves {', '.join(unknown)}; expected blocks among {', '.join(BLOCKS)}")
