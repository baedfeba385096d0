"""Conversion: LeetCodeDataset rows to the benchmark's row form, and files that are written whole.

Invariants:
- LeetCodeDataset v0.2.0 converts, loads again, and shares no problem with the benchmark's 119
- the canonical solution of every row of v0.2.0 that is kept passes the grader, and the one that is refused says why
- a row whose own solution fails is refused, with what it raised, and the others are written
- a row with the fields of v0.3 gives the same problem as one of v0.2, and is correct in the grader
- a tolerance for floats is taken from the sentence that grants it, and from no other
- the same rows give the same bytes, and a limit keeps the first rows
- rows that cannot be converted are refused with a reason, and a conversion that fails leaves no file behind
- a file is whole or not there: a failure in the middle of writing keeps the old file and leaves no temporary
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _gate import Gate, refusal, shared_folder
from vgrout.env.convert import convert_leetcode_dataset, verified_by_grader
from vgrout.env.files import written_atomically
from vgrout.env.problems import assert_disjoint, load_problems
from vgrout.types import Problem

gate = Gate(__doc__)


def written(folder: str, *lines: str | dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = Path(folder) / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@gate.invariant("the canonical solution of every row of v0.2.0 that is kept passes the grader", slow=True)
def _():
    source = shared_folder() / "LeetCodeDataset-v0.2.0-train.jsonl.gz"
    with tempfile.TemporaryDirectory() as folder:
        report = convert_leetcode_dataset(source, Path(folder) / "a.jsonl", verify=verified_by_grader)
    assert report.verified and report.converted >= 1880 and report.converted + len(report.refused) == 1890
    reasons = dict(report.refused)
    assert reasons.keys() == {"2222"} and "ModuleNotFoundError" in reasons["2222"], reasons  # it needs numpy
    return f"{report.converted} verified; {reasons}"


@gate.invariant("a row whose own solution fails is refused, with what it raised, and the others are written")
def _():
    check = "def check(candidate):\n    assert candidate(n = 1) == 2"
    rows = [_dataset_row(k, check) for k in (1, 2, 3, 4)]
    rows[1]["completion"] = rows[1]["completion"].replace("n + 1", "n + 2")
    rows[2]["completion"] = "import numpy\n" + rows[2]["completion"]
    done: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        source, out = written(folder, *rows, name="source.jsonl"), Path(folder) / "out.jsonl"

        def verify(problems: Sequence[Problem]) -> dict[str, str]:
            return verified_by_grader(problems, workers=2, progress=lambda *counts: done.append(counts))

        report = convert_leetcode_dataset(source, out, verify=verify)
        assert [p.id for p in load_problems(out)] == ["1", "4"] and report.verified
        assert not convert_leetcode_dataset(source, out).verified
        hopeless = written(folder, rows[1], name="hopeless.jsonl")
        message = refusal(lambda: convert_leetcode_dataset(hopeless, Path(folder) / "no.jsonl", verify=verify))
    reasons = dict(report.refused)
    assert reasons.keys() == {"2", "3"} and "mismatch" in reasons["2"] and "ModuleNotFoundError" in reasons["3"], (
        reasons
    )
    assert done[:4] == [(k, 4) for k in (1, 2, 3, 4)] and "no row" in message, (done, message)
    return f"2 of 4 refused: {reasons['3']}"


@gate.invariant("a row with the fields of v0.3 gives the same problem as one of v0.2, and is correct in the grader")
def _():
    check = "def check(candidate):\n    assert candidate(n = 1) == 2\n    assert candidate(n = -1) == 0"
    older, newer = _dataset_row(7, check), _dataset_row(7, check)
    del newer["meta"]
    older["query"] = "Add one."
    newer |= {
        "task_id": "add-one", "question_id": 7, "difficulty": "Medium", "tags": ["Math"], "estimated_date": 1720396800000,
        "problem_description": "Add one.\nExample 1: ...", "response": "...", "input_output": [{"input": "1", "output": "2"}],
        "starter_code": "class Solution:\n    def inc(self, n: int) -> int:\n        ",
        "query": "You are an expert Python programmer. ...",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        problems = []
        for name, row in (("old", older), ("new", newer)):
            source = written(folder, row, name=f"{name}.jsonl")
            out = Path(folder) / f"{name}-rows.jsonl"
            report = convert_leetcode_dataset(source, out, verify=partial(verified_by_grader, workers=1))
            assert (report.converted, report.refused) == (1, ()), report
            problems += load_problems(out)
    assert problems[0] == problems[1] and problems[1].id == "7" and problems[1].difficulty == "medium"
    assert (
        "Add one.\nExample 1" in problems[1].messages[1][1] and "expert Python" not in problems[1].messages[1][1][:40]
    )
    return "14 fields, one problem"


@gate.invariant("a tolerance for floats is taken from the sentence that grants it, and from no other")
def _():
    said = {
        "Answers within 10-5 of the actual answer will be accepted.": 1e-5,
        "Answers will be accepted as correct if they are within 10^-6 of the correct answer.": 1e-6,
        "Any answer with a calculation error less than 10-5 will be accepted.": 1e-5,
        "When checking if two numbers are equal, check that their absolute difference is less than 10-5.": 0.0,
        "-10-5 <= x. Any answer is accepted.": 0.0,
        "Return it rounded to 5 digits.": 0.0,
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(said):
            row = _dataset_row(number, "def check(candidate):\n    assert candidate(n = 1) == 2")
            row["meta"]["question_title"] = f"Add one.\n{text}"
            out = Path(folder) / "out.jsonl"
            convert_leetcode_dataset(written(folder, row, name="source.jsonl"), out)
            found[text] = load_problems(out)[0].float_tolerance
        assert found == said, found
        row = json.loads(out.read_text())
        for bad in ("1e-5", -1, 1, True, float("nan")):
            path = written(folder, row | {"float_tolerance": bad})
            assert "'float_tolerance'" in refusal(lambda path=path: load_problems(path))
    return f"{len(said)} sentences, 5 values refused"


@gate.invariant("LeetCodeDataset v0.2.0 converts, loads again, and shares no problem with the 119", slow=True)
def _():
    test = load_problems(shared_folder() / "leetcode_test_medhard.jsonl.gz")
    source = shared_folder() / "LeetCodeDataset-v0.2.0-train.jsonl.gz"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "a.jsonl.gz"
        seen: list[int] = []
        report = convert_leetcode_dataset(source, out, progress=seen.append)
        problems = load_problems(out)
    assert (report.converted, len(report.refused), seen[-1]) == (len(problems), 0, 1890) and len(problems) == 1890
    assert report.difficulties == Counter(p.difficulty for p in problems) == {"easy": 515, "medium": 1000, "hard": 375}
    helper_rows = sum(p.asserts[0].startswith("assert is_same_") for p in problems)
    assert report.asserts == sum(len(p.asserts) for p in problems) == 4752 and helper_rows == 46
    assert not any("candidate(" in a for p in problems for a in p.asserts)
    assert all("Please complete" not in p.messages[1][1] for p in problems)
    assert_disjoint(test=test, converted=problems)
    tolerant = {p.id for p in problems if p.float_tolerance}
    assert len(tolerant) == 13 and "2693" in tolerant and "2065" not in tolerant, tolerant
    return f"{report.converted} converted, {len(report.refused)} refused, {report.asserts:,} asserts, {helper_rows} helper rows"


@gate.invariant("the same rows give the same bytes, and a limit keeps the first rows")
def _():
    source = shared_folder() / "LeetCodeDataset-v0.2.0-train.jsonl.gz"
    with tempfile.TemporaryDirectory() as folder:
        packed, again, plain = (Path(folder) / name for name in ("a.jsonl.gz", "b.jsonl.gz", "c.jsonl"))
        reports = [
            convert_leetcode_dataset(source, packed, limit=60),
            convert_leetcode_dataset(source, again, limit=60),
        ]
        more = convert_leetcode_dataset(source, plain, limit=90)
        assert packed.read_bytes() == again.read_bytes() and reports[0] == reports[1]
        assert (reports[0].converted, more.converted) == (60, 90)
        assert load_problems(packed) == load_problems(plain)[:60]
    return f"60 and 90 rows, {reports[0].asserts} and {more.asserts} asserts"


def _dataset_row(number: int, test: str, **further: object) -> dict[str, Any]:
    facts = {"question_id": number, "difficulty": "Meidum", "question_title": "Add one.\nExample 1: ..."}
    facts["lang_code"] = "class Solution:\n    def inc(self, n: int) -> int:"
    row = {
        "task_id": f"row-{number}",
        "prompt": "from typing import *\n",
        "entry_point": "Solution().inc",
        "test": test,
    }
    row["completion"] = "class Solution:\n    def inc(self, n: int) -> int:\n        return n + 1\n"
    return {**row, "query": "Add one.", "meta": facts, **further}


@gate.invariant("rows that cannot be converted are refused with a reason; a failed conversion leaves no file behind")
def _():
    check = "def check(candidate):\n    "
    newer = _dataset_row(9, check + "assert candidate(n = 5) == 6", question_id=9, difficulty="Hard", starter_code=(
        "class Solution:\n    def inc(self, n: int) -> int:\n        "), problem_description="Add one to n.")  # fmt: skip
    del newer["meta"]
    rows = [
        _dataset_row(1, check + "assert candidate(n = 1) == 2\n    assert candidate(n=2)==3"),
        _dataset_row(2, check + "assert candidate(n = 1) > 0"),
        _dataset_row(3, check + "x = candidate(n = 1)\n    assert x == 2"),
        _dataset_row(4, check + "assert sorted(candidate(n = 1)) == [2]"),
        _dataset_row(5, check + "assert candidate(n = 1) == candidate(n = 1)"),
        _dataset_row(6, "def check(candidate):"),
        _dataset_row(1, check + "assert candidate(n = 1) == 2"),
        _dataset_row(7, check + "assert is_same_list(candidate(n = 1), list_node([2]))"),
        _dataset_row(8, check + "assert candidate(n = 1) == 2", entry_point="inc"),
        newer,
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, out = written(folder, *rows, name="source.jsonl"), Path(folder) / "out.jsonl"
        report = convert_leetcode_dataset(source, out)
        problems = {p.id: p for p in load_problems(out)}
        assert set(problems) == {"1", "7", "9"} and problems["1"].difficulty == "medium"
        assert problems["1"].asserts == ("assert Solution().inc(n=1) == 2", "assert Solution().inc(n=2) == 3")
        assert problems["7"].asserts == ("assert is_same_list(Solution().inc(n=1), list_node([2]))",)
        assert problems["9"].difficulty == "hard" and "Add one to n." in problems["9"].messages[1][1]
        reasons = dict(report.refused)
        for number, part in {"2": "neither", "3": "not a plain assert", "4": "left side", "5": "used twice"}.items():
            assert part in reasons[number], (number, reasons[number])
        assert "twice" in reasons["1"] and "check" in reasons["6"] and "func_name" in reasons["8"]
        files = sorted(p.name for p in Path(folder).iterdir())
        bad = written(folder, rows[0], {"task_id": "x"}, name="bad.jsonl")
        assert "bad.jsonl:2" in (message := refusal(lambda: convert_leetcode_dataset(bad, Path(folder) / "no.jsonl")))
        assert "'prompt'" in message
        hopeless = written(folder, rows[1], name="hopeless.jsonl")
        assert "no row" in refusal(lambda: convert_leetcode_dataset(hopeless, Path(folder) / "no.jsonl"))
        assert "existing folder" in refusal(lambda: convert_leetcode_dataset(source, Path(folder) / "none" / "x.jsonl"))
        assert "itself" in refusal(lambda: convert_leetcode_dataset(source, source))
        assert "no such file" in refusal(lambda: convert_leetcode_dataset(Path(folder) / "gone.jsonl", out))
        assert sorted(p.name for p in Path(folder).iterdir()) == sorted([*files, "bad.jsonl", "hopeless.jsonl"])
    return f"{report.converted} of {len(rows)} converted, {len(report.refused)} refused with reasons"


@gate.invariant("a file is whole or not there: a failure in the middle of writing keeps the old one and leaves nothing")
def _():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kept.jsonl"
        path.write_bytes(b"old")
        for failure in (KeyboardInterrupt, OSError):
            try:
                with written_atomically(path) as file:
                    file.write(b"half of the n")
                    assert path.read_bytes() == b"old", "the old file is touched before the new one is whole"
                    raise failure
            except failure:
                pass
            assert path.read_bytes() == b"old" and list(Path(folder).iterdir()) == [path]
        with written_atomically(path) as file:
            file.write(b"new")
        assert path.read_bytes() == b"new" and list(Path(folder).iterdir()) == [path]
    return "2 kinds of failure"


if __name__ == "__main__":
    gate.main()
