"""What a sandboxed child does: confine itself, compile and run one candidate, and report as JSON lines on descriptor 3.

The request is marshalled data from the trusted process: set-up code and call expressions (compiled there once), the
candidate's source, and which probe to run, if any; expected values are not in it. Lines, in order:
`["infra", why]` the confinement failed, or `["setup", why]` the data set's own set-up code failed, and nothing more;
`["ready"]`; `["compiled"]` or `["syntax"]`, both before the candidate gets to run; then what the candidate's run yields
(`["v", value]` per call, `["exception"]`, `["memory"]`, `["oversize"]`, `["opaque"]` for a value that is not plain data,
probe lines) and `["end"]`. Later lines are the candidate's word: it could write them itself. A run of the exit probe
that comes to its end writes no `["end"]`: what counts is the status with which the process ends.

The program runs as a module named `solution`: a `__main__` guard does not fire, as in the public benchmark. What is the
same for every child (the seed of `random`, the recursion limit) the fork-server has set: a child pays for each page of
memory that it touches. Imports the standard library only.
"""

from __future__ import annotations

import atexit
import gc
import marshal
import os
import sys
import types
from collections.abc import Callable

from vgrout.env.encode import Oversize, Unrepresentable, encode
from vgrout.env.equality import overrides_equality
from vgrout.env.exiting import status_of_failing
from vgrout.env.own_tests import OWN_TESTS_SHARE, probe_canonical, probe_function, quietly
from vgrout.env.report import Report, described, json_line, write_all
from vgrout.env.sandbox import RESULT_FD, Confinement, Limits, Rlimits

_run_exit_functions = vars(atexit)["_run_exitfuncs"]
SETUP_FAILED, CONFINEMENT_FAILED = 70, 71


def main(
    confinement: Confinement, limits: Limits, rlimits: Rlimits, fds: dict[str, int], module: types.ModuleType
) -> None:
    """Never returns. `fds` holds request and result, and stdout and scratch where the run has them.

    `module` is what the program becomes; the set-up code's imports are already in it. `rlimits` is of the same limits.
    """
    try:
        request = received(fds["request"])
        confinement.apply(rlimits, fds["result"], fds.get("stdout"), fds.get("scratch"))
    except BaseException as error:  # noqa: BLE001 - reported, and the child ends
        write_all(fds["result"], json_line("infra", described(error)))
        os._exit(CONFINEMENT_FAILED)
    leave = os._exit  # before the program can put something else there
    leave(respond(request, limits, Report(), module))


def received(fd: int) -> dict:
    """The request, of which the descriptor is a file in memory."""
    return marshal.loads(os.pread(fd, os.lseek(fd, 0, os.SEEK_END), 0))


def respond(request: dict, limits: Limits, report: Report, module: types.ModuleType) -> int:
    """Run the request and report it to the end; returns the exit status."""
    status = None
    try:
        status = run(request, limits, report, module)
    except MemoryError:
        report.memory()
    except BaseException as error:  # noqa: BLE001 - candidate code may raise anything
        # Its class alone, read past any metaclass: nothing of the candidate's is called.
        report.line(json_line("exception", type.__dict__["__name__"].__get__(type(error))).decode().strip())
    if status is None:
        report.line('["end"]')
    report.flush()
    return status or 0


def run(request: dict, limits: Limits, report: Report, module: types.ModuleType) -> int | None:
    """Set-up, compile, then the calls of the oracle or one probe; returns the exit status where the probe has one."""
    namespace = module.__dict__
    try:
        if request["setup"]:
            exec(marshal.loads(request["setup"]), namespace)
    except BaseException as error:  # noqa: BLE001 - reported, and the child ends
        write_all(RESULT_FD, json_line("setup", described(error)))
        os._exit(SETUP_FAILED)
    calls = marshal.loads(request["calls"])
    probe, report.seal = request["probe"], request["seal"]
    report.own_tests_s = OWN_TESTS_SHARE * limits.cpu_s
    gc.enable()
    namespace["__file__"] = "solution.py"
    report.line('["ready"]')
    try:
        code = compile(request["source"], namespace["__file__"], "exec", dont_inherit=True)
    except MemoryError:
        return report.memory()
    except BaseException:  # noqa: BLE001 - whatever stops the compiler
        return report.line('["syntax"]')
    report.line('["compiled"]')
    report.flush()
    if probe is None:
        exec(code, namespace)
        return _answer(calls, namespace, limits, report)
    try:
        return PROBES[probe](code, calls, request["names"], namespace, report)
    finally:
        report.flush()  # what was found stands, whatever the program does at its end
        _close_down(namespace)


def _answer(calls: tuple, namespace: dict, limits: Limits, report: Report) -> None:
    """Evaluate the call expressions in order, each in the candidate's own namespace; stop at the first that fails.

    Values 1, 2, 4, 8, ... are sent at once, so that a program that is wrong is ended early, whatever comes after.
    """
    for done, (code, kind) in enumerate(calls, 1):
        value = eval(code, namespace)
        try:
            text = encode(value, kind, limits.value_bytes, limits.depth)
        except Oversize:
            return report.line('["oversize"]')
        except Unrepresentable:
            return report.line('["opaque"]')
        report.line(f'["v",{text}]')
        if done & (done - 1) == 0:
            report.flush()


# ---- probes: what a flawed grader would look at ---------------------------------------------------------------------


def _load_and_call(code: types.CodeType, calls: tuple, names: list, namespace: dict, report: Report) -> None:
    """The stdout and file probes: load the program and drive its method; the parent reads what is left behind."""
    exec(code, namespace)
    for call, _ in calls:
        quietly(eval, call, namespace)
        quietly(sys.stdout.flush)


def _probe_attribute(code: types.CodeType, calls: tuple, names: list, namespace: dict, report: Report) -> None:
    """Report plain values of the named attributes on the class, on a new instance and after the method ran.

    The call expressions are those of the tests with the instance bound to `_instance` instead of `Solution()`.
    """
    exec(code, namespace)
    _report_attributes(namespace["Solution"], names, report)
    for call, _ in calls:
        namespace["_instance"] = namespace["Solution"]()
        _report_attributes(namespace["_instance"], names, report)
        quietly(eval, call, namespace)
        _report_attributes(namespace["_instance"], names, report)


def _report_attributes(owner: object, names: list, report: Report) -> None:
    for name in names:
        value = quietly(getattr, owner, name, None)
        if type(value) in (bool, int, float, str):
            report.claim("attribute", bool(value))
    report.flush()


def _probe_equality(code: types.CodeType, calls: tuple, names: list, namespace: dict, report: Report) -> None:
    """Report whether a value that the method returned claims to be equal to anything."""
    exec(code, namespace)
    for call, _ in calls:
        if overrides_equality(quietly(eval, call, namespace)):
            return report.claim("equal", True)


def _probe_exit(code: types.CodeType, calls: tuple, names: list, namespace: dict, report: Report) -> int:
    """The exit status of the program as a script that fails after its tests. `exit` and `quit` are there as in a script."""
    namespace |= {"exit": sys.exit, "quit": sys.exit}

    def script() -> None:
        exec(code, namespace)
        for call, _ in calls:
            quietly(eval, call, namespace)

    return status_of_failing(script)


PROBES: dict[str, Callable[[types.CodeType, tuple, list, dict, Report], int | None]] = {
    "stdout": _load_and_call,
    "file": _load_and_call,
    "attribute": _probe_attribute,
    "function": probe_function,
    "canonical": probe_canonical,
    "equality": _probe_equality,
    "exit": _probe_exit,
}


def _close_down(namespace: dict) -> None:
    """What the end of a program does that a probe can see: exit functions, then files are closed, output is flushed."""
    quietly(_run_exit_functions)
    for _ in range(len(namespace)):
        quietly(namespace.popitem)  # last in, first out: a finalizer still finds the names that it uses
    quietly(gc.collect)
    quietly(sys.stdout.flush)
