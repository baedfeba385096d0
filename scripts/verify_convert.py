"""Conversion: LeetCodeDataset rows to the benchmark's row form, and files that are written whole.

Invariants:
- LeetCodeDataset converts, loads again, and shares no problem with the benchmark's 119
- the same rows give the same bytes, and a limit keeps the first rows
- rows that cannot be converted are refused with a reason, and a conversion that fails leaves no file behind
- a file is whole or not there: a failure in the middle of writing keeps the old file and leaves no temporary
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from _gate import Gate, refusal, shared_folder
from vgrout.env.convert import convert_leetcode_dataset
from vgrout.env.files import written_atomically
from vgrout.env.problems import assert_disjoint, load_problems

gate = Gate(__doc__)


def written(folder: str, *lines: str | dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = Path(folder) / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@gate.invariant("LeetCodeDataset converts, loads again, and shares no problem with the 119", slow=True)
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
