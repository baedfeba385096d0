"""What the gates on the command line share: running `vgrout` in this process, refused mistakes, a problem row, a run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _gate  # noqa: F401 - switches the type check on before the package is imported
from vgrout import cli
from vgrout.env.problems import builtin_split
from vgrout.presets import preset
from vgrout.run.console import setup_console
from vgrout.train import train

ROOT = tempfile.TemporaryDirectory(prefix="vgrout-verify-cli-")
FOLDER = Path(ROOT.name)


def run(*arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `vgrout ARGUMENTS`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(list(arguments))
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
    setup_console()
    return int(code or 0), out.getvalue(), err.getvalue()


def refused(*arguments: str, says: tuple[str, ...]) -> str:
    """Asserts the contract for one mistake and returns the message."""
    out = FOLDER / "out"
    code, _, err = run(
        *arguments, *(("--out", str(out)) if arguments[0] == "train" and "--out" not in arguments else ())
    )
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == cli.USAGE_ERROR, f"{arguments}: exit code {code}, stderr {err!r}"
    assert len(lines) == 1 and "Traceback" not in err, f"{arguments}: expected one error line, got {err!r}"
    for part in says:
        assert part in lines[0], f"{arguments}: {part!r} is not in {lines[0]!r}"
    assert not out.exists(), f"{arguments}: left {[str(p) for p in out.rglob('*')]} behind"
    return lines[0]


def row(**changed: Any) -> dict[str, Any]:
    """The first built-in problem as a row of a problem file."""
    p = builtin_split()[0][0]
    messages = [{"role": role, "content": content} for role, content in p.messages]
    good = {
        "id": p.id,
        "difficulty": p.difficulty,
        "prompt": messages,
        "gt_answer": list(p.asserts),
        "setup_code": p.setup_code,
        "func_name": p.func_name,
        "canonical_solution": p.canonical_solution,
        "prompt_metadata": {"starter_code": p.starter_code},
    }
    return good | changed


def with_hint(change: Callable[[str], str]) -> list[dict[str, str]]:
    return [{**m, "content": change(m["content"]) if m["role"] == "user" else m["content"]} for m in row()["prompt"]]


def problem_file(*rows: dict[str, Any] | str) -> str:
    path = FOLDER / "rows.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


@functools.cache
def finished_run(intervention: str = "none") -> Path:
    """A short finished run outside the folder whose emptiness is asserted."""
    base = preset("smoke", intervention)
    evaluation = dataclasses.replace(base.eval, problems=1, free_prompts=False)
    config = dataclasses.replace(base, steps=1, out=FOLDER / "finished", eval=evaluation, allow_oracle=True)
    with contextlib.redirect_stdout(io.StringIO()):
        return train(config)


def altered(label: str, section: str, **values: Any) -> Path:
    """A copy of the finished run whose configuration differs in one section."""
    source, copy = finished_run(), FOLDER / f"altered-{label}"
    copy.mkdir()
    for path in source.glob("*.json"):
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config[section] |= values
    (copy / "config.json").write_text(json.dumps(config))
    return copy
