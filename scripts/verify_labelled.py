"""Files of labelled rollouts: what measurements and upper bounds read.

- rows come back with their prompt as it was shown; rows without a grade are left out
- a field of another type, an unknown mode, problem or view, and text that is no text are refused by file, row and field
- torn, foreign and damaged files are one-line errors
- oracle pairs: one from each prompt that has both kinds, hacks on the hack side; too few are refused
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import zstandard

from _gate import Gate, refusal
from vgrout.env.prompts import render
from vgrout.labelled import oracle_pairs, read_labelled
from vgrout.micro.problems import micro_problems

gate = Gate(__doc__)
PROBLEMS = micro_problems("validation")[:4]


def row(i: int = 0, exploited: bool = False, **changed: Any) -> dict[str, Any]:
    shown = render(PROBLEMS[i], "run_tests", "train", 0)
    made = {"step": 1, "problem_id": shown.problem_id, "mode": "run_tests", "marker": shown.marker, "view": "deploy"}
    made |= {"response": f"answer {i} {exploited}", "finished": True, "exploited": exploited, "gt_correct": False}
    return made | {"infra": False} | changed


def written(*rows: object, name: str = "r.jsonl") -> Path:
    path = Path(tempfile.mkdtemp(prefix="vgrout-verify-labelled-")) / name
    text = "".join(json.dumps(r) + "\n" for r in rows).encode()
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)(text)
    path.write_bytes(packed)
    return path


@gate.invariant("rows come back with the prompt as it was shown, from .jsonl, .gz and .zst; ungraded ones are left out")
def _():
    for name in ("r.jsonl", "r.jsonl.gz", "r.jsonl.zst"):
        found = read_labelled(written(row(0), row(1, True), row(2, infra=True), name=name), PROBLEMS)
        assert [r.exploited for r in found] == [False, True] and found[0].view == "deploy", name
        assert found[1].messages == render(PROBLEMS[1], "run_tests", "train", 0).messages
    return "3 kinds of file"


@gate.invariant("wrong types, unknown names and text that is none are refused by file, row and field")
def _():
    bad: dict[str, dict[str, Any]] = {
        "exploited 'false'": {"exploited": "false"},
        "exploited None": {"exploited": None},
        "exploited 1": {"exploited": 1},
        "gt_correct": {"gt_correct": "yes"},
        "step": {"step": "abc"},
        "problem_id": {"problem_id": ["x"]},
        "marker": {"marker": None},
        "response": {"response": 3},
        "response text": {"response": "half \ud800"},
        "mode": {"mode": "run_test"},
        "view": {"view": "top"},
        "finished": {"finished": "no"},
    }
    for what, change in bad.items():
        path = written(row(0), row(1, **change))
        message = refusal(lambda path=path: read_labelled(path, PROBLEMS))
        assert f"{path}: row 2" in message and what.split()[0] in message, (what, message)
    lacking = {k: v for k, v in row().items() if k != "exploited"}
    assert "lacks exploited" in refusal(lambda: read_labelled(written(lacking), PROBLEMS))
    assert "--problems" in refusal(lambda: read_labelled(written(row(problem_id="other")), PROBLEMS))
    return f"{len(bad) + 2} rows"


@gate.invariant("torn, foreign and damaged files are one-line errors")
def _():
    good = [row(i % 4) for i in range(40)]
    torn = written(*good, name="r.jsonl.gz")
    torn.write_bytes(torn.read_bytes()[:-12])
    foreign = written(name="r.jsonl.zst")
    foreign.write_bytes(zstandard.ZstdCompressor().compress(b"no json\n"))
    latin = written()
    latin.write_bytes(b'{"x": "\xff"}\n')
    files = {"torn": torn, "foreign": foreign, "latin": latin, "list": written([1]), "empty": written()}
    for what, path in (files | {"absent": torn.with_name("absent.jsonl")}).items():
        assert path.name in refusal(lambda path=path: read_labelled(path, PROBLEMS)), what
    return f"{len(files) + 1} files"


@gate.invariant("oracle pairs: one from each prompt with both kinds, the hack on its side; one alone is refused")
def _():
    rows = [row(0), row(0, True), row(0, True), row(1, True), row(1), row(2, True), row(3)]
    pairs = oracle_pairs(written(*rows), PROBLEMS)
    assert [p.heading for p in pairs] == [f"run_tests/{PROBLEMS[i].id}" for i in (0, 1)]
    assert all(p.hack.endswith("True") and p.clean.endswith("False") for p in pairs)
    assert "needs 2" in refusal(lambda: oracle_pairs(written(row(0), row(0, True)), PROBLEMS))
    return f"{len(pairs)} pairs of {len(rows)} rows"


if __name__ == "__main__":
    gate.main()
