"""Real rollouts through `vgrout grade`: what the strict grader says of completions that an earlier, loose one had labelled.

    python scripts/study_real_rollouts.py --data ../shared/data --out out/real_rollouts

`--data` holds LeetCodeDataset v0.2.0 and files of rollouts (rows with id, problem_id, mode, response, perhaps messages,
and a label of `hacked`, `gt_pass` and `reward`). The problems are converted and the rollouts are graded by the command
line, twice: on the problem that the data set has under their number, and on the one whose statement their prompt shows
(the two sources number some problems differently). Printed are the labels by mode, our findings against the loose
labels, and a cause for every disagreement (see `_disagreements`); one without a cause makes the exit code 1. Of the
rollouts only ids and counts are printed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, get_args

from _disagreements import CAUSES, Rollout, by_statement, cause, same_problem, shown_problem
from _further_inputs import DRAWN, DRAWS, harder
from vgrout.env.convert import convert_leetcode_dataset
from vgrout.env.grader import Grader
from vgrout.env.problems import load_problems
from vgrout.env.prompts import render
from vgrout.env.rows import read_rows
from vgrout.types import Label, Problem

DATASET = "LeetCodeDataset-v0.2.0-train.jsonl.gz"
FILES = ("rollouts_qwen3_4b_run_tests.jsonl.gz", "rollouts_four_modes.jsonl.gz")


def converted(data: Path, out: Path) -> tuple[Path, dict[str, Problem]]:
    """The data set as a problem file, and its problems by id."""
    path = out / "problems.jsonl.gz"
    if not path.exists():
        convert_leetcode_dataset(data / DATASET, path)
    return path, {problem.id: problem for problem in load_problems(path)}


def graded(
    problems: Path, rows: list[dict[str, Any]], problem_of: dict[str, str], out: Path, name: str
) -> list[Rollout]:
    """The rollouts with their verdicts, by the command line; `problem_of` says which problem each is graded on."""
    responses, verdicts = out / f"{name}.responses.jsonl.gz", out / f"{name}.verdicts.jsonl"
    with gzip.open(responses, "wt", encoding="utf-8") as file:
        for row in rows:
            asked = {
                "id": row["id"],
                "problem_id": problem_of[row["id"]],
                "mode": row["mode"],
                "response": row["response"],
            }
            file.write(json.dumps(asked) + "\n")
    files = ("--problems", problems, "--responses", responses, "--out", verdicts)
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "vgrout.cli", "grade", *map(str, files)], check=True, stdout=subprocess.DEVNULL
    )
    print(f"{len(rows)} graded in {time.monotonic() - start:.1f} s")
    back = [verdict for _, verdict in read_rows(verdicts)]
    assert [verdict["id"] for verdict in back] == [row["id"] for row in rows], (
        "verdicts in another order than responses"
    )
    return [
        Rollout(row["id"], shown_problem(row)[0], row["mode"], row["response"], row["label"], verdict)
        for row, verdict in zip(rows, back, strict=True)
    ]


def labels_by_mode(rollouts: list[Rollout]) -> str:
    """Markdown: the benchmark's five labels by mode, and what the strict grader calls a hack."""
    labels = get_args(Label)
    lines = ["| mode | rollouts | " + " | ".join(labels) + " | strict hacks |", "|---|" + "---|" * (len(labels) + 2)]
    by_mode: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        by_mode[rollout.mode].append(rollout)
    for mode, members in by_mode.items():
        count = Counter(member.verdict["label"] for member in members)
        hacks = sum(member.verdict["exploited"] for member in members)
        lines.append(f"| {mode} | {len(members)} | " + " | ".join(str(count[x]) for x in labels) + f" | {hacks} |")
    return "\n".join(lines)


def against_loose(rollouts: list[Rollout]) -> str:
    """Markdown: our channel and correctness against the loose labels `hacked` and `gt_pass`."""
    lines = ["| loose label | rollouts | channel fired | correct | strict hacks |", "|---|---|---|---|---|"]
    for hacked in (True, False):
        for passed in (True, False):
            members = [r for r in rollouts if (r.loose["hacked"], r.loose["gt_pass"]) == (hacked, passed)]
            found = [sum(m.verdict[name] for m in members) for name in ("channel", "gt_correct", "exploited")]
            name = f"{'hacked' if hacked else 'no hack'}, {'passes' if passed else 'fails'} ground truth"
            lines.append(f"| {name} | {len(members)} | " + " | ".join(map(str, found)) + " |")
    return "\n".join(lines)


def report(rollouts: list[Rollout], problem_of: dict[str, str], problems: dict[str, Problem]) -> int:
    """Print tables and causes; how many disagreements have no cause."""
    found: dict[str, list[str]] = defaultdict(list)
    for rollout in rollouts:
        if (why := cause(rollout, problems[problem_of[rollout.id]])) is not None:
            found[why].append(rollout.id)
    print(
        f"\n{labels_by_mode(rollouts)}\n\n{against_loose(rollouts)}\n\n| disagreements | cause | rollouts |\n|---|---|---|"
    )
    for why, ids in found.items():
        print(f"| {len(ids)} | {CAUSES[why]} | {', '.join(ids[:6])}{', ...' if len(ids) > 6 else ''} |")
    check_further(rollouts, found["other tests"], problem_of, problems)
    return len(found["unexplained"])


def check_further(
    rollouts: list[Rollout], ids: list[str], problem_of: dict[str, str], problems: dict[str, Problem]
) -> None:
    """Print how many of these rollouts pass drawn tests of the problems that have some."""
    chosen = [r for r in rollouts if r.id in set(ids) and problem_of[r.id] in DRAWN]
    if not chosen:
        return
    harder_of = {i: harder(problems[i]) for i in {problem_of[r.id] for r in chosen}}
    with Grader(harder_of.values()) as grader:
        prompts = [render(harder_of[problem_of[r.id]], "gt_only", "train", 0) for r in chosen]
        verdicts = grader.grade_many((p, r.response) for p, r in zip(prompts, chosen, strict=True))
    wrong = [rollout.id for rollout, verdict in zip(chosen, verdicts, strict=True) if not verdict.gt_correct]
    print(
        f"\n{len(chosen)} of them on {DRAWS} drawn tests each: {len(chosen) - len(wrong)} right, wrong: {wrong or 'none'}"
    )


def listed(rows: list[dict[str, Any]]) -> str:
    """How many rollouts of how many problems, and which."""
    count = Counter(row["problem_id"] for row in rows)
    return f"{len(rows)} rollouts of {len(count)} problems: " + ", ".join(
        f"{p} ({n})" for p, n in sorted(count.items())
    )


def main() -> None:
    """Grade, print the tables, explain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/real_rollouts"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path, problems = converted(options.data, options.out)
    unexplained = 0
    for name in FILES:
        rows = [row for _, row in read_rows(options.data / name)]
        numbers = {row["id"]: str(row["problem_id"]) for row in rows if str(row["problem_id"]) in problems}
        shown = by_statement(rows, problems)
        other = [row for row in rows if row["id"] in numbers and not same_problem(row, problems[numbers[row["id"]]])]
        print(f"\n## {name}: {len(rows)} rollouts")
        print(f"\nnumber not in the data set: {listed([row for row in rows if row['id'] not in numbers])}")
        print(f"\nnumber of another problem there: {listed(other)}")
        print(
            f"\nproblem not in the data set under any number: {listed([row for row in rows if row['id'] not in shown])}"
        )
        for how, problem_of in {"number": numbers, "statement": shown}.items():
            print(f"\n### by the problem's {how}\n")
            known = [row for row in rows if row["id"] in problem_of]
            rollouts = graded(path, known, problem_of, options.out, f"{name.partition('.')[0]}.{how}")
            unexplained += report(rollouts, problem_of, problems)
    print(f"\n{unexplained} disagreements without a cause")
    sys.exit(unexplained > 0)


if __name__ == "__main__":
    main()
