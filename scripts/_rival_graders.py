"""Graders that ours is compared with: a bare lower bound, and one in the style of the field. Neither contains anything."""

from __future__ import annotations

import ast
import json
import marshal
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from types import CodeType

from _bare_server import ANSWER, LENGTH
from vgrout.types import Problem

CPU_S, WALL_S = 3, 120.0
"""The field's limit is 3 s of wall time; of CPU time here, so that a busy machine fails no right programs."""


class Bare:
    """One warm interpreter that forks for each program; asserts are compiled once per problem."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("_bare_server.py")
        command = [sys.executable, "-I", "-S", str(script)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={})
        self.compiled: dict[str, tuple[CodeType, CodeType]] = {}
        self.children = 0.0
        """CPU seconds of the children."""

    def prepare(self, problem: Problem) -> None:
        """Compile the problem's set-up and asserts."""
        setup = compile(problem.setup_code, "<setup>", "exec")
        self.compiled[problem.id] = setup, compile("\n".join(problem.asserts), "<tests>", "exec")

    def passes(self, problem: Problem, program: str) -> bool:
        """Whether the program passes every assert."""
        setup, asserts = self.compiled[problem.id]
        request = marshal.dumps((setup, program, asserts))
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(LENGTH.pack(len(request)) + request)
        self.process.stdin.flush()
        status, cpu_s = ANSWER.unpack(self.process.stdout.read(ANSWER.size))
        self.children += cpu_s
        return status == 0

    def cpu(self) -> float:
        """CPU seconds of the interpreter and its children so far."""
        own = int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9
        return own + self.children

    def close(self) -> None:
        """End the interpreter."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Field:
    """A fresh interpreter for each check: does it compile, does it pass the tests, do its own tests pass on its own code
    and on a stub. Ours finds out the same four things."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="vgrout-bench-")

    def passes(self, problem: Problem, program: str, *, own_tests: bool = False) -> bool:
        """Whether the program passes every assert; with `own_tests` its `run_tests` is called as well, on both."""
        if not self._run(_COMPILES, {"source": program}).get("compiles"):
            return False
        job = {"setup": problem.setup_code, "source": program, "tests": list(problem.asserts)}
        passed = self._run(_TESTS, job).get("passed", 0) == len(problem.asserts)
        if own_tests:
            for tested in (program, _stub(program)):
                self._run(_OWN, job | {"tested": tested})
        return passed

    def _run(self, script: str, job: dict) -> dict:
        path = Path(self.folder.name) / "check.py"
        path.write_text(script.replace("CPU_S", str(CPU_S)).replace("JOB", repr(json.dumps(job))))
        command = [sys.executable, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=WALL_S, cwd=self.folder.name)
        except subprocess.TimeoutExpired:
            return {}
        lines = done.stdout.strip().splitlines()
        try:
            answer = json.loads(lines[-1]) if lines else {}
        except ValueError:
            return {}
        return answer if isinstance(answer, dict) else {}

    def cpu(self) -> float:
        """CPU seconds of this process's reaped children so far: only the interpreters of the checks are."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def close(self) -> None:
        """Remove the folder."""
        self.folder.cleanup()


_HEAD = """
import json, os, resource, signal, sys, traceback
job = json.loads(JOB)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
sys.setrecursionlimit(10000)
"""
_COMPILES = f"""{_HEAD}
try:
    compile(job["source"], "solution.py", "exec")
    print(json.dumps({{"compiles": True}}))
except Exception:
    print(json.dumps({{"compiles": False, "error": traceback.format_exc()}}))
"""
_TESTS = f"""{_HEAD}
namespace, passed, errors = {{"__name__": "solution"}}, 0, []
try:
    exec(job["setup"], namespace)
    exec(job["source"], namespace)
    for test in job["tests"]:
        try:
            exec(test, namespace)
            passed += 1
        except Exception:
            errors.append(traceback.format_exc())
            break
except Exception:
    errors.append(traceback.format_exc())
print()
print(json.dumps({{"passed": passed, "errors": errors}}))
"""
_OWN = f"""{_HEAD}
namespace = {{"__name__": "solution"}}
ok = False
try:
    exec(job["setup"], namespace)
    exec(job["tested"], namespace)
    run = namespace.get("run_tests") or getattr(namespace["Solution"](), "run_tests")
    run()
    ok = True
except Exception:
    pass
print()
print(json.dumps({{"own": ok}}))
"""


def _stub(program: str) -> str:
    """The program with every method of `Solution` but its tests returning 0."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError):
        return "x ="
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef) and owner.name == "Solution":
            for method in owner.body:
                if isinstance(method, ast.FunctionDef) and method.name != "run_tests" and method.name[:2] != "__":
                    method.body = [ast.Return(ast.Constant(0))]
    return ast.unparse(ast.fix_missing_locations(tree))


assert os.name == "posix", "these graders fork"
