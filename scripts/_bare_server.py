"""The least that a grader can do: fork, run the set-up, the program and its compiled asserts, exit. Nothing is contained.

The lower bound of `bench_grader.py`: `python -I -S _bare_server.py`, requests on standard input as a length and
marshalled (set-up code, program's text, code of the asserts), answers as (exit status, CPU seconds) on standard output.
It has loaded what the grader's fork-server loads of the standard library. Imports the standard library only.
"""

import gc
import importlib
import marshal
import os
import struct
import sys

MODULES = "bisect collections datetime functools heapq itertools math operator random re string typing"
LENGTH, ANSWER = struct.Struct("=q"), struct.Struct("=id")


def main() -> None:
    """Serve until standard input ends."""
    for name in MODULES.split():
        importlib.import_module(name)
    sys.setrecursionlimit(10_000)
    gc.collect()
    gc.freeze()
    while head := sys.stdin.buffer.read(LENGTH.size):
        setup, source, asserts = marshal.loads(sys.stdin.buffer.read(*LENGTH.unpack(head)))
        pid = os.fork()
        if pid == 0:
            passed = False
            try:
                namespace = {"__name__": "solution"}
                exec(setup, namespace)
                exec(compile(source, "solution.py", "exec"), namespace)
                exec(asserts, namespace)
                passed = True
            finally:
                os._exit(not passed)
        _, status, usage = os.wait4(pid, 0)
        os.write(1, ANSWER.pack(status, usage.ru_utime + usage.ru_stime))


if __name__ == "__main__":
    main()
