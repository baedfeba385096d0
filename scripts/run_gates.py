"""Runs the gates (`scripts/verify_*.py`) in parallel: heavy imports once, then one forked process per gate.

    python scripts/run_gates.py --quick            # the quick tier of every gate
    python scripts/run_gates.py --all layers run   # every invariant of two gates

Each invariant's line appears as it finishes; failures are repeated at the end with their tracebacks, skipped ones with
their reason. The last line is `N passed, N failed` (`, N skipped`). Exit 0 only if something passed and nothing failed.
A gate whose process dies, hangs, or reports nothing counts as a failure, whatever it printed before.
"""

from __future__ import annotations

import os

# Before torch is imported: one thread per gate, since the gates themselves share the cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VGROUT_TYPECHECK"] = "1"

import argparse
import importlib
import importlib.util
import json
import selectors
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from _gate import Gate, Result, add_tiers, closing_line
from vgrout.cores import usable_cores

SCRIPTS = Path(__file__).parent
HINTS = SCRIPTS.parent / "out" / ".gate_seconds.json"
HEAVY = ("torch", "transformers.models.qwen3.modeling_qwen3", "vgrout.demo", "vgrout.train", "vgrout.reevaluate")


@dataclass
class Child:
    """A forked gate: its process (the leader of its own group), the pipe it talks through, where its results will lie."""

    name: str
    pid: int
    pipe: BinaryIO
    results: Path
    started: float
    partial: bytes = b""


def main() -> None:
    args = parse_arguments()
    files = choose(args.folder, args.names)
    start = time.perf_counter()
    preload(args.preload)
    print(f"{len(files)} gates on {args.jobs} cores (imports {time.perf_counter() - start:.1f} s)", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        results, seconds = run_all(longest_first(files, args.tier), Path(scratch), args)
    if args.folder == SCRIPTS:
        remember(seconds, args.tier)
    summarise(results, seconds, time.perf_counter() - start)
    ran = any(result.status == "passed" for result in results)
    sys.exit(0 if ran and all(result.status != "FAILED" for result in results) else 1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_tiers(parser)
    parser.add_argument("names", nargs="*", help="gates to run, with or without `verify_` (default: all)")
    parser.add_argument("--only", default="", help="only invariants whose sentence contains this text")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="gates at a time (default: usable cores)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which a gate counts as hung")
    parser.add_argument("--folder", type=Path, default=SCRIPTS, help="where the verify_*.py files lie")
    parser.add_argument("--no-preload", dest="preload", action="store_false", help="leave heavy imports to the gates")
    args = parser.parse_args()
    if args.jobs < 1 or args.timeout <= 0:
        parser.error("--jobs and --timeout must be above 0")
    return args


def choose(folder: Path, names: list[str]) -> list[Path]:
    """The gate files by name; exits with a line that lists what exists where a name is unknown."""
    files = {path.stem: path for path in sorted(folder.glob("verify_*.py"))}
    wanted = [name if name.startswith("verify_") else f"verify_{name}" for name in names] or list(files)
    if unknown := [name for name in wanted if name not in files]:
        sys.exit(f"run_gates: no gate {', '.join(unknown)} in {folder}; there are: {', '.join(files) or 'none'}")
    return [files[name] for name in wanted]


def preload(heavy: bool) -> None:
    for name in HEAVY if heavy else ():
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def longest_first(files: list[Path], tier: str) -> list[Path]:
    """By the seconds of the last run in this checkout; gates without a figure first, larger files before smaller."""
    known = json.loads(HINTS.read_text()) if HINTS.exists() else {}
    key = {path: known.get(f"{path.stem} {tier}", 1e6 + path.stat().st_size) for path in files}
    return sorted(files, key=lambda path: -key[path])


def remember(seconds: dict[str, float], tier: str) -> None:
    known = json.loads(HINTS.read_text()) if HINTS.exists() else {}
    known |= {f"{name} {tier}": round(value, 1) for name, value in seconds.items()}
    HINTS.parent.mkdir(exist_ok=True)
    temporary = HINTS.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(known, indent=1, sort_keys=True))
    temporary.replace(HINTS)


def run_all(files: list[Path], scratch: Path, args: argparse.Namespace) -> tuple[list[Result], dict[str, float]]:
    """Keeps `jobs` gates running until all have ended; returns their results and each gate's wall seconds."""
    waiting, running = list(files), list[Child]()
    results, seconds = list[Result](), dict[str, float]()
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and len(running) < args.jobs:
                    child = fork_gate(waiting.pop(0), scratch, args)
                    running.append(child)
                    selector.register(child.pipe, selectors.EVENT_READ, child)
                for key, _ in selector.select(timeout=0.05):
                    if relay(key.data) < 0:
                        selector.unregister(key.fileobj)
                for child in list(running):
                    status = ended(child, args.timeout)
                    if status is None:
                        continue
                    running.remove(child)
                    if child.pipe in {key.fileobj for key in selector.get_map().values()}:
                        selector.unregister(child.pipe)
                    seconds[child.name] = time.monotonic() - child.started
                    results += collect(child, status, seconds[child.name])
        finally:
            for child in running:
                kill_group(child.pid)
    return results, seconds


def fork_gate(file: Path, scratch: Path, args: argparse.Namespace) -> Child:
    """Forks one gate: leader of a new process group, standard output and error into a pipe, no standard input."""
    read, write = os.pipe()
    results = scratch / f"{file.stem}.json"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        os.set_blocking(read, False)
        return Child(file.stem, pid, os.fdopen(read, "rb", buffering=0), results, time.monotonic())
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(read)
        found = load_gate(file).run(tier=args.tier, only=args.only)
        results.write_text(json.dumps([asdict(result) for result in found]))
        code = 0
    except BaseException:  # noqa: BLE001 - the child must end here, and the parent must see why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def load_gate(file: Path) -> Gate:
    """Executes a gate file as the module of its name and returns its `gate`."""
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None, f"{file} cannot be imported"
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    gate = getattr(module, "gate", None)
    if not isinstance(gate, Gate) or not gate.invariants:
        raise TypeError(f"{file} declares no `gate = Gate(__doc__)` with invariants")
    return gate


def relay(child: Child) -> int:
    """Prints the whole lines that the child has written since; the number of bytes read, -1 at the end of its output."""
    data = child.pipe.read(1 << 16)
    if data is None:  # nothing to read now
        return 0
    *lines, child.partial = (child.partial + data).split(b"\n")
    if not data and child.partial:
        lines, child.partial = [child.partial], b""
    for line in lines:
        print(line.decode(errors="replace"), flush=True)
    return len(data) or -1


def ended(child: Child, timeout: float) -> str | None:
    """None while the gate runs, "" when it ended well, else what ended it."""
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if pid == 0:
        if time.monotonic() - child.started < timeout:
            return None
        kill_group(child.pid)
        os.waitpid(child.pid, 0)
        return f"was stopped after {timeout:.0f} s"
    # What a gate started and left behind must not hold the pipe or the machine.
    kill_group(child.pid)
    code = os.waitstatus_to_exitcode(status)
    return "" if code == 0 else f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def kill_group(pid: int) -> None:
    # macOS answers EPERM where the group holds zombies only; nothing is left to kill then either.
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def collect(child: Child, ending: str, seconds: float) -> list[Result]:
    """The gate's results, or one failure where it ended without leaving any."""
    # Read what is still in the pipe, but do not wait for its end: a stray descendant may hold it open.
    while relay(child) > 0:
        continue
    if child.partial:
        print(child.partial.decode(errors="replace"), flush=True)
    child.pipe.close()
    if not ending and child.results.exists():
        return [Result(**fields) for fields in json.loads(child.results.read_text())]
    reason = f"the gate process {ending or 'left no results'} (its last words are above)"
    print(f"FAILED  {child.name}: {reason}", flush=True)
    return [Result(child.name, "the gate runs to its end", "FAILED", reason, seconds)]


def summarise(results: list[Result], seconds: dict[str, float], total: float) -> None:
    for result in results:
        if result.status == "FAILED":
            print(f"\nFAILED  {result.gate}: {result.invariant}\n{result.figure.rstrip()}")
    skipped = [result for result in results if result.status == "skipped"]
    for result in skipped:
        print(f"skipped {result.gate}: {result.invariant}: {result.figure}")
    slowest = sorted(results, key=lambda result: -result.seconds)[:5]
    print("slowest: " + "; ".join(f"{r.gate} {r.seconds:.1f} s ({r.invariant})" for r in slowest))
    gates = ", ".join(f"{name} {value:.1f}" for name, value in sorted(seconds.items(), key=lambda item: -item[1]))
    print(f"{total:.1f} s in all; seconds by gate: {gates}")
    print(closing_line(results), flush=True)


if __name__ == "__main__":
    main()
