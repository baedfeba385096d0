"""The exit status of a script that does something and then fails: what the `exit` probe looks at.

The script that a grader of that kind runs is the program, then its tests, then a failed assertion; its status says
whether it passed. Here the failure comes whatever the tests return, so a status of 0 means that the program decided it.
Runs inside the child; imports the standard library only.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from contextlib import suppress

FAILED = 1


def status_of_failing(script: Callable[[], object]) -> int:
    """The status of a script that fails at its end, in the order in which an interpreter ends one.

    SystemExit ends it with its own code; anything else is a failure, which is handed to `sys.excepthook` and then to
    `sys.exit`, as programs may have replaced them; last come the functions registered with `atexit`. A script that calls
    `os._exit` never gets back here.
    """
    run_at_exit = vars(atexit)["_run_exitfuncs"]
    vars(atexit)["_clear"]()  # what the fork-server itself had registered
    try:
        script()
        raise AssertionError("the failure that comes after the tests")
    except SystemExit as stop:
        status = status_of(stop.code)
    except BaseException as error:  # noqa: BLE001 - candidate code may raise anything
        status = _fail(error)
    with suppress(BaseException):
        run_at_exit()
    return status


def status_of(code: object) -> int:
    """The process's exit status for the argument of `sys.exit`."""
    if code is None:
        return 0
    return int(code) & 0xFF if isinstance(code, int) else FAILED


def _fail(error: BaseException) -> int:
    try:
        if sys.excepthook is not sys.__excepthook__:  # which would only print
            sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(FAILED)
    except SystemExit as stop:
        return status_of(stop.code)
    except BaseException:  # noqa: BLE001 - of a function that the program put there
        return FAILED
    return 0  # a program whose own `sys.exit` returns has the script reach its end
