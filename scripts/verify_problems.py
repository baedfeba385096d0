"""Problems: the built-in set and the loader.

Invariants:
- the built-in set is large, mixed and short enough, with tests and near misses for every problem
- the shipped file is what its sources give, byte for byte; making it proves every canonical solution against a brute
  force, every wrong solution wrong, and every trivial answer wrong
- the built-in split is disjoint, and overlapping ids are refused by name
- every kind of malformed row or file is refused with one line that names file, line, field and what was expected
- harmless variations of a row are accepted (integer or string ids, gzip, further fields, helper asserts, blank lines)
- the environment imports neither torch nor numpy nor pandas
- the benchmark's 119 test problems load with all their 12,592 asserts
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _gate import Gate, refusal, shared_folder
from make_builtin import FURTHER_CASES, OUT, authored, built
from vgrout.env.problems import assert_disjoint, builtin_problems, builtin_split, load_problems
from vgrout.env.rows import read_rows

gate = Gate(__doc__)


def good_row() -> dict[str, Any]:
    """A fresh copy of the first built-in row."""
    return next(read_rows(OUT))[1]


def written(folder: str, *lines: str | dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = Path(folder) / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@gate.invariant("the built-in set is large, mixed and short, with asserts and near misses for every problem")
def _():
    problems = builtin_problems()
    kinds = Counter(p.difficulty for p in problems)
    asserts = [len(p.asserts) for p in problems]
    words = {p.id: len(p.statement.split()) for p in authored()}
    assert len(problems) >= 30 and kinds["easy"] >= 12 and kinds["medium"] >= 12 and kinds["hard"] >= 6, kinds
    assert min(asserts) >= 12, asserts
    assert max(words.values()) <= 120 and min(words.values()) >= 20, words
    assert all(p.wrong_solutions for p in problems)
    user_turns = [p.messages[-1][1] for p in problems]
    for part in ("PROBLEM:\n", "Example 1:", "Example 2:", "Constraints:", "# Add your code here\n```", "SOLUTION:\n"):
        assert all(turn.count(part) == 1 for turn in user_turns), part
    assert len({p.func_name for p in problems}) == len(problems)
    return (
        f"{len(problems)} problems ({dict(kinds)}), {min(asserts)}+ asserts each, {max(words.values())} words at most"
    )


@gate.invariant("the shipped file is what its sources give, byte for byte, with every solution proved on the way")
def _():
    data = built()
    assert OUT.read_bytes() == data, "run scripts/make_builtin.py"
    return f"{len(data):,} bytes; {FURTHER_CASES} further cases per canonical solution"


@gate.invariant("the built-in split is disjoint, about a third held out, and overlaps are refused by name")
def _():
    train, held_out = builtin_split()
    share = len(held_out) / (len(train) + len(held_out))
    assert 0.28 <= share <= 0.4 and {p.difficulty for p in held_out} == {p.difficulty for p in train}
    assert {p.id for p in train} | {p.id for p in held_out} == {p.id for p in builtin_problems()}
    message = refusal(lambda: assert_disjoint(train=train, held_out=[*held_out, train[3]], other=["x"]))
    assert "train" in message and "held_out" in message and train[3].id in message and "other" not in message
    return f"{len(train)} train, {len(held_out)} held out"


def _row_cases() -> dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]]:
    """name: (what is done to a good row, what the message must contain)"""
    turn = good_row()["prompt"][-1]["content"]
    slot = "and should pass all tests"

    def put(field: str, value: object) -> Callable[[dict[str, Any]], object]:
        return lambda row: row.update({field: value})

    def user(content: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": content}]

    return {
        **{f"no {f}": (lambda row, f=f: row.pop(f), (f"field '{f}'", "no such field")) for f in good_row() if f not in
           ("split", "wrong_solutions")},
        "id of a wrong type": (put("id", 1.5), ("field 'id'", "1.5")),
        "boolean id": (put("id", True), ("field 'id'", "True")),
        "empty id": (put("id", ""), ("field 'id'", "''")),
        "difficulty of a wrong type": (put("difficulty", 3), ("field 'difficulty'", "non-empty string", "3")),
        "empty canonical solution": (put("canonical_solution", " "), ("field 'canonical_solution'",)),
        "no asserts": (put("gt_answer", []), ("field 'gt_answer'", "non-empty list", "[]")),
        "asserts are no list": (put("gt_answer", "assert f() == 1"), ("field 'gt_answer'", "assert L == R")),
        "an assert is no string": (put("gt_answer", [7]), ("field 'gt_answer'", "[7]")),
        "an assert does not parse": (put("gt_answer", ["assert f( == 1"]), ("'gt_answer[0]'", "does not parse")),
        "an assert is no equality": (put("gt_answer", ["assert f() == 1", "assert f() < 1"]), ("'gt_answer[1]'", "==")),
        "a chained comparison": (put("gt_answer", ["assert f() == 1 == 1"]), ("'gt_answer[0]'", "not a single ==")),
        "an unknown helper": (put("gt_answer", ["assert close(f(), 1)"]), ("'gt_answer[0]'", "is_same_list")),
        "a helper with one argument": (put("gt_answer", ["assert is_same_tree(f())"]), ("two arguments",)),
        "an assert with a message": (put("gt_answer", ["assert f() == 1, 'no'"]), ("'gt_answer[0]'", "message")),
        "not an assert": (put("gt_answer", ["f() == 1"]), ("'gt_answer[0]'", "not one assert")),
        "another form of func_name": (put("func_name", "solve"), ("field 'func_name'", "Solution().NAME", "solve")),
        "prompt is no list": (put("prompt", "text"), ("field 'prompt'", "role")),
        "a turn without content": (put("prompt", [{"role": "user"}]), ("field 'prompt'",)),
        "the user does not speak last": (put("prompt", [{"role": "system", "content": slot}]), ("ends with the user",)),
        "hint slot missing": (put("prompt", user(turn.replace(slot, ""))), ("field 'prompt'", slot, "0 of them")),
        "hint slot twice": (put("prompt", user(turn + slot)), ("field 'prompt'", slot, "2 of them")),
        "no starter code": (put("prompt_metadata", {}), ("field 'prompt_metadata.starter_code'",)),
        "wrong_solutions of a wrong type": (put("wrong_solutions", "x"), ("field 'wrong_solutions'",)),
    }  # fmt: skip


@gate.invariant("every malformed row is refused with file, line, field and what was expected")
def _():
    cases = _row_cases()
    with tempfile.TemporaryDirectory() as folder:
        for name, (spoil, wanted) in cases.items():
            other, row = good_row(), good_row()
            other["id"] = "another"
            spoil(row)
            path = written(folder, other, row)
            message = refusal(lambda path=path: load_problems(path))
            for part in (f"{path}:2: ", "expected", *wanted):
                assert part in message, f"{name}: {part!r} is not in {message!r}"
    return f"{len(cases)} cases, each at FILE:2"


@gate.invariant("every malformed file is refused by name")
def _():
    row = good_row()
    with tempfile.TemporaryDirectory() as folder:
        whole = gzip.compress(json.dumps(row).encode())
        for name, data in (("cut.jsonl.gz", whole[:-20]), ("plain.jsonl.gz", b"{}\n"), ("packed.jsonl", whole)):
            (Path(folder) / name).write_bytes(data)
        cases = {
            "bad JSON": (written(folder, row, "{", name="a.jsonl"), ("a.jsonl:2", "not JSON")),
            "no object": (written(folder, "[1]", name="b.jsonl"), ("b.jsonl:1", "JSON object", "[1]")),
            "id twice": (written(folder, row, row, name="c.jsonl"), ("c.jsonl:2", "'id'", "line 1", row["id"])),
            "empty file": (written(folder, name="d.jsonl"), ("d.jsonl", "no rows")),
            "LeetCodeDataset row": (
                written(folder, {"task_id": "x", "entry_point": "y", "completion": "z"}, name="e.jsonl"),
                ("e.jsonl:1", "vgrout data convert"),
            ),
            "no such file": (Path(folder) / "none.jsonl", ("none.jsonl", "no such file")),
            "another ending": (written(folder, row, name="f.csv"), ("f.csv", ".jsonl")),
            "a folder": (Path(folder), ("is a folder",)),
            "cut gzip": (Path(folder) / "cut.jsonl.gz", ("cut.jsonl.gz", "gzip")),
            "not gzip": (Path(folder) / "plain.jsonl.gz", ("plain.jsonl.gz", "gzip")),
            "gzip without .gz": (Path(folder) / "packed.jsonl", ("packed.jsonl:1", ".jsonl.gz")),
        }
        for name, (path, wanted) in cases.items():
            message = refusal(lambda path=path: load_problems(path))
            assert all(part in message for part in wanted), f"{name}: {wanted} not all in {message!r}"
    return f"{len(cases)} cases"


@gate.invariant("harmless variations of a row are accepted")
def _():
    one, two, three = good_row(), good_row(), good_row()
    one.update(id=7, comment={"any": "thing"})
    two.update(id="7b", gt_answer=["assert is_same_list(Solution().f(), list_node([1]))", "assert f(1) == inf"])
    three.pop("wrong_solutions")
    lines = [json.dumps(one), "", json.dumps(two), json.dumps(three), ""]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl.gz"
        path.write_bytes(gzip.compress("\r\n".join(lines).encode()))
        problems = load_problems(path)
    assert [p.id for p in problems] == ["7", "7b", good_row()["id"]] and problems[2].wrong_solutions == ()
    return f"{len(problems)} rows"


@gate.invariant("the environment's content imports neither torch nor numpy nor pandas")
def _():
    modules = ("problems", "modes", "prompts", "partition", "draw", "convert", "demonstrations")
    code = f"import sys, {', '.join('vgrout.env.' + m for m in modules)}; print(*sys.modules)"
    plain = {name: value for name, value in os.environ.items() if name != "VGROUT_TYPECHECK"}  # the checks import more
    run = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    heavy = {"torch", "numpy", "pandas", "transformers", "jaxtyping"} & set(loaded)
    assert not heavy and "vgrout.env.draw" in loaded, heavy
    return f"{len(loaded)} modules loaded"


@gate.invariant("the benchmark's 119 test problems load with all their asserts")
def _():
    problems = load_problems(shared_folder() / "leetcode_test_medhard.jsonl.gz")
    asserts, kinds = sum(len(p.asserts) for p in problems), Counter(p.difficulty for p in problems)
    assert (len(problems), asserts, kinds) == (119, 12_592, {"medium": 73, "hard": 46})
    assert all(len(p.messages) == 2 and p.messages[0][0] == "system" for p in problems)
    return f"{len(problems)} problems, {asserts:,} asserts, {dict(kinds)}"


if __name__ == "__main__":
    gate.main()
