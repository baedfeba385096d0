"""`vgrout doctor`: what works on this machine, and what to do about the rest. Needs no network and writes nothing to keep."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from vgrout.cores import usable_cores
from vgrout.env import sandbox
from vgrout.env.grader import GRADER_VERSION, Grader
from vgrout.env.layers import CONTAINER
from vgrout.env.namespaces import refused
from vgrout.env.problems import builtin_split, load_problems
from vgrout.presets import preset
from vgrout.run.disk import require_writable
from vgrout.run.provenance import code_revision
from vgrout.types import UserError

ROOM = 2e9
"""Bytes that should be free where runs are written: checkpoints and rollouts of a 4B run."""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    status: Literal["ok", "missing", "broken"]
    what: str
    found: str
    remedy: str = ""
    needed: bool = False
    """Without it nothing can be trained here."""


def doctor(out: Path = Path("out")) -> bool:
    """Prints the table; whether training on this machine is possible.

    Args:
        out: Folder that runs are written to.
    """
    lines: list[Line] = []
    for line in looked_at(out):
        lines.append(line)
        print(f"{line.status:8} {line.what:18} {line.found}", flush=True)
        if line.remedy:
            print(f"{'':8} {'':18} -> {line.remedy}", flush=True)
    stopping = [line.what for line in lines if line.needed and line.status != "ok"]
    if stopping:
        print(f"\nTraining is not possible here: {', '.join(stopping)}.")
    else:
        gpu = any(line.what == "GPU" and line.status == "ok" for line in lines)
        where = "every preset" if gpu else "the presets smoke and micro (lite, fast and full need a GPU)"
        print(f"\nTraining is possible here: {where}. `vgrout train PRESET --dry-run` says what a run needs.")
    return not stopping


def looked_at(out: Path) -> Iterator[Line]:
    """The checks, one line after the other as each is done."""
    yield _checked("Python", _python, needed=True)
    yield _checked("packages", _packages, needed=True)
    yield from _torch()
    yield _vllm()
    yield from sandbox_lines()
    yield Line("ok", "cores", f"{usable_cores()} usable of {os.cpu_count()} (affinity and CPU quota)")
    yield _checked("output folder", lambda: _room(out), needed=True)
    yield _checked("built-in problems", _builtin, needed=True)
    yield _checked("micro base", _micro)
    yield _benchmark()
    yield Line("ok", "code", f"vgrout {metadata.version('vgrout')}, {_revision()}")


def _revision() -> str:
    found = code_revision(Path(__file__).with_name("__init__.py"))
    if "reason" in found:
        return f"revision unknown ({found['reason']})"
    return f"revision {str(found['revision'])[:12]}" + (", changed since" if found["dirty"] else "")


def _checked(what: str, check: Callable[[], str], *, needed: bool = False) -> Line:
    """The check's words; of a `UserError` the words in front of its semicolon, and behind it the remedy."""
    try:
        return Line("ok", what, check(), needed=needed)
    except UserError as error:
        found, _, remedy = str(error).partition("; ")
        return Line("broken", what, found, remedy, needed)


def _python() -> str:
    from transformers.utils.versions import require_version

    wanted = metadata.metadata("vgrout")["Requires-Python"]
    try:
        require_version(f"python{wanted}".replace(" ", ""))
    except ImportError as error:
        raise UserError(
            f"{platform.python_version()}, expected {wanted}; make the environment again with such a Python"
        ) from error
    return f"{platform.python_version()} (expected {wanted}), {platform.system()} on {platform.machine()}"


def _packages() -> str:
    """Every dependency that the package declares, against its range."""
    from transformers.utils.versions import require_version

    wanted = [text.partition(";") for text in metadata.requires("vgrout") or ()]
    ranges = [text.replace(" ", "") for text, _, marker in wanted if "extra" not in marker]
    wrong = []
    for text in ranges:
        try:
            require_version(text)
        except (metadata.PackageNotFoundError, ImportError):
            wrong.append(f"{text} ({_version(re.split('[<>=!~ ]', text)[0]) or 'not installed'})")
    if wrong:
        raise UserError(f"{len(wrong)} of {len(ranges)} out of range: {', '.join(wrong)}; run `uv sync`")
    some = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "peft", "tokenizers"))
    return f"{len(ranges)} in their ranges ({some})"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Iterator[Line]:
    import torch

    yield Line("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch is a CPU build"
        remedy = (
            "smoke and micro run on the CPU; for lite, fast and full use a machine with a GPU and a CUDA build of torch"
        )
        yield Line("missing", "GPU", f"no CUDA device is seen; {built}", remedy)
        return
    for i in range(torch.cuda.device_count()):
        free, size = torch.cuda.mem_get_info(i)
        bf16 = torch.cuda.is_bf16_supported()
        found = f"{torch.cuda.get_device_name(i)}, {size / 1e9:.1f} GB, {free / 1e9:.1f} GB free, bf16 {'yes' if bf16 else 'no'}"
        yield Line(
            "ok" if bf16 else "broken", "GPU", found, "" if bf16 else "use --model.dtype fp32, at twice the memory"
        )


def _vllm() -> Line:
    if version := _version("vllm"):
        return Line("ok", "vLLM", version)
    return Line(
        "missing", "vLLM", "not installed; rollouts come from the package's own decoding", "`uv sync --extra vllm`"
    )


def sandbox_lines() -> Iterator[Line]:
    """Each layer, and then all of them at work: the grader's own self-test and one canonical solution."""
    have = sandbox.available()
    for layer in sandbox.LAYERS:
        if layer in have:
            detail = f"version {sandbox.landlock_abi()}" if layer == "landlock" else "system calls are filtered"
            yield Line("ok", f"sandbox {layer}", detail)
            continue
        waive = layer in sandbox.WAIVABLE
        remedy = CONTAINER + (
            f"; or go without: `vgrout train PRESET --env.sandbox-allow-missing {layer}` (grade: --sandbox-allow-missing "
            f"{layer}), which leaves file access to seccomp alone, cannot pay file_marker, and is named in every verdict"
            if waive
            else "; it cannot be waived"
        )
        yield Line("missing", f"sandbox {layer}", "the kernel lacks it", remedy, needed=not waive)
    if have:
        reason = refused()
        remedy = "optional (--sandbox-namespaces; training: --env.sandbox-namespaces): allow user namespaces to have it"
        found = f"refused: {reason}" if reason else "can wrap the others when asked for (--sandbox-namespaces)"
        yield Line("missing" if reason else "ok", "sandbox namespaces", found, remedy if reason else "")
    missing = tuple(layer for layer in sandbox.WAIVABLE if layer not in have)
    yield _checked("sandbox at work", lambda: _graded(missing), needed=True)


def _graded(missing: tuple[str, ...]) -> str:
    problem = builtin_split()[0][0]
    with Grader([problem], workers=1, allow_missing=missing) as grader:
        seconds = grader.measure_limits()[problem.id]
        held = ", ".join(grader.layers)
    without = f", without {', '.join(missing)}" if missing else ""
    return f"{held}: self-test passed, a canonical solution is correct (CPU limit {seconds:g} s); grader version {GRADER_VERSION}{without}"


def _room(out: Path) -> str:
    require_writable(out, None)
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < ROOM:
        raise UserError(
            f"{out}: {free / 1e9:.1f} GB free, expected {ROOM / 1e9:g}; free some or name another with --out"
        )
    return f"{out} can be written, {free / 1e9:.1f} GB free"


def _builtin() -> str:
    train, held_out = builtin_split()
    return f"{len(train)} for training, {len(held_out)} held out"


def _micro() -> str:
    from vgrout.micro.store import require_recorded, shipped_base
    from vgrout.models import load_model

    require_recorded(load_model("micro"))
    return f"{shipped_base().parameters:,} parameters, weights and tokenizer as recorded"


def _benchmark() -> Line:
    """The files that the presets lite, fast and full name."""
    config = preset("full", "none")
    names = [config.problems, config.eval_problems or ""]
    if absent := [name for name in names if not Path(name).is_file()]:
        remedy = (
            "`vgrout data fetch` (says how to place them by hand where there is no network); smoke and micro need none"
        )
        return Line("missing", "benchmark files", ", ".join(absent), remedy)
    return _checked(
        "benchmark files", lambda: ", ".join(f"{name}: {len(load_problems(name))} problems" for name in names)
    )


def run_doctor(out: Path = Path("out")) -> None:
    """Says what works on this machine and what to do about the rest; exit code 0 where training is possible, else 1.

    Args:
        out: Folder that runs are written to.
    """
    sys.exit(0 if doctor(out) else 1)
