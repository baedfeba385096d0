"""What a response's own test function says: about a stub, about the response's own code, about the canonical solution.

Runs in the sandboxed child beside candidate code. Imports the standard library only.
"""

from __future__ import annotations

import types
from time import process_time
from typing import Any

from vgrout.env.report import Report

OWN_TESTS_SHARE = 0.125
"""Of the CPU limit: at least what the canonical solution takes for all the hidden tests. A response's tests are a few small
cases, and what they say of its own code is paid nothing; those that never end would cost more than all other grades."""

WRAPPERS = 8
"""How many decorators a test function may have before nobody looks behind them."""
_NOT_METHODS = frozenset({"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__slots__"})


def probe_function(code: types.CodeType, calls: tuple, names: list, namespace: dict, report: Report) -> None:
    """Report whether a function of that name passes with stub methods (`stub`) and on the program's own code (`own`).

    Programs often end by calling their own tests; if those fail here, the function is still there to be called. The
    tests on its own code must pass within their share of the CPU limit. This process's own clock decides that, because
    the watcher, which ends those that go on, comes late on a busy machine.
    """
    quietly(exec, code, namespace)
    solution = namespace.get("Solution")
    with _Stubbed(solution, names):
        report.claim("stub", _some_test_passes(names, namespace, solution))
    report.flush()
    end = process_time() + report.own_tests_s
    report.claim("own", _some_test_passes(names, namespace, solution) and process_time() <= end)


def probe_canonical(code: types.CodeType, calls: tuple, names: list, namespace: dict, report: Report) -> None:
    """Report whether a function of that name passes on the canonical solution (`canonical`), which is the only call.

    The canonical solution is loaded first, with names of its own, and its methods then take the places of the program's:
    so they also answer where the program made an object of its class while it was loaded.
    """
    ((canonical, _),) = calls
    own = dict(namespace)
    exec(canonical, own)
    quietly(exec, code, namespace)
    solution = namespace.setdefault("Solution", own["Solution"])
    for owner in reversed(own["Solution"].__mro__[:-1]):
        for name, value in vars(owner).items():
            if name not in _NOT_METHODS and name not in names:
                quietly(setattr, solution, name, value)
    report.claim("canonical", _some_test_passes(names, namespace, solution))


def quietly(function, *arguments):
    """The result, or None where candidate code raised; SystemExit and its like end the run as they would a program."""
    try:
        return function(*arguments)
    except Exception:  # noqa: BLE001 - candidate code may raise anything
        return None


def _some_test_passes(names: list, namespace: dict, solution: Any) -> bool:
    for name in names:
        for find in (lambda name=name: namespace[name], lambda name=name: getattr(solution(), name)):
            try:
                test = find()
                if _is_guarded(test):
                    continue
                test()
            except Exception:  # noqa: BLE001 - candidate code may raise anything
                continue
            return True
    return False


def _is_guarded(test: Any) -> bool:
    """Whether the function looks at `__name__` for `__main__`: the public benchmark counts it as no test function."""
    for _ in range(WRAPPERS):
        code = getattr(test, "__code__", None)
        if code is not None and "__main__" in code.co_consts and "__name__" in code.co_names:
            return True
        test = getattr(test, "__wrapped__", None)
    return False


class _Stubbed:
    """While entered, every method of the class (but those named and the dunders) is one that returns 0."""

    def __init__(self, solution: object, keep: list):
        self.solution = solution
        self.keep = frozenset(keep)
        self.own: dict = {}

    def __enter__(self) -> None:
        if not isinstance(self.solution, type):
            return
        for owner in reversed(self.solution.__mro__[:-1]):
            for name, value in list(vars(owner).items()):
                if (name.startswith("__") and name.endswith("__")) or name in self.keep or isinstance(value, type):
                    continue
                if callable(value) or isinstance(value, staticmethod | classmethod):
                    self.own.setdefault(name, vars(self.solution).get(name, self))
                    setattr(self.solution, name, lambda *args, **kwargs: 0)

    def __exit__(self, *error) -> None:
        for name, value in self.own.items():
            if value is self:
                delattr(self.solution, name)
            else:
                setattr(self.solution, name, value)
