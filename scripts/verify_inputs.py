"""Files that a user brings: what cannot be used is refused by file, line and field; what is read is never written over.

Invariants:
- a row with an unknown role, a method name that Python does not take, control characters, half a surrogate pair, or a
  line that exhausts the JSON parser is refused;
- a problem whose tests or canonical solution fail is named with its file;
- `vgrout grade` and `vgrout data convert` keep their inputs, and refuse a folder as output and numbers below 1 first;
- a prompt's length is that of the problem's longest prompt, with and without hint;
- teacher modes that no prompt is shown in need no pool.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path

from _cli import FOLDER, problem_file, refused, row, run, with_hint
from _gate import Gate, refusal
from vgrout.env.modes import MODES
from vgrout.env.problems import builtin_split, load_problems
from vgrout.env.prompts import render
from vgrout.inputs import check_prompt_lengths, load_policy
from vgrout.models import render_prompt
from vgrout.opening import open_session
from vgrout.presets import preset

gate = Gate(__doc__)
DEEP = "[" * 200_000 + "]" * 200_000
LONG = "1" * 5_000


@gate.invariant("rows that no later part could use are refused at load, with file, line and field")
def _():
    turns = row()["prompt"]
    cases = {
        "'prompt'": row(id="x", prompt=[{"role": "developer", "content": "Be brief."}, *turns]),
        "'prompt' ": row(id="x", prompt=with_hint(lambda text: text + "\ud800")),
        "'func_name'": row(id="x", func_name="Solution().class"),
        "'func_name' ": row(id="x", func_name="Solution().a\u00b2"),
        "'func_name'  ": row(id="x", func_name="Solution().two sum"),
        "'id'": row(id="x\ny"),
        "'id' ": row(id="x\x1b[2J"),
        "'canonical_solution'": row(id="x", canonical_solution="x = '\udfff'"),
        "'wrong_solutions'": row(id="x", wrong_solutions=["x = '\udfff'"]),
        "not JSON": DEEP,
        "not JSON ": f'{{"id": {LONG}}}',
    }
    for says, bad in cases.items():
        path = problem_file(row(), bad)
        message = refusal(lambda path=path: load_problems(path))
        assert "rows.jsonl:2" in message and says.strip() in message and message.isprintable(), (says, message)
    assert "is a folder" in refusal(lambda: load_problems(FOLDER))
    harmless = row(id="7 b\u00e4r", prompt=[*turns[:-1], {"role": "assistant", "content": "\U0001f642"}, turns[-1]])
    assert load_problems(problem_file(harmless, row(func_name="Solution().gr\u00f6\u00dfe")))[0].id == "7 b\u00e4r"
    return f"{len(cases) + 1} refused, 2 unusual rows accepted"


def responses(*rows: str) -> Path:
    path = FOLDER / "responses.jsonl"
    path.write_text("".join(line + "\n" for line in rows))
    return path


def response(problem_id: str = "x") -> str:
    return json.dumps({"id": 1, "problem_id": problem_id, "mode": "gt_only", "response": "```python\nx = 1\n```"})


@gate.invariant("a problem whose tests or canonical solution fail is named with its file")
def _():
    given, out = responses(response()), str(FOLDER / "verdicts.jsonl")
    cases = {
        "gt_answer[0]": row(id="x", gt_answer=["assert f(1) == {[]: 1}"]),
        "gt_answer[0] ": row(id="x", gt_answer=[f"assert f(1) == float({10**400})"]),
        "canonical solution fails": row(id="x", canonical_solution="class Solution: pass"),
    }
    for says, bad in cases.items():
        options = ("--problems", problem_file(bad), "--responses", str(given), "--out", out, "--workers", "1")
        refused("grade", *options, says=("rows.jsonl", "problem x", says.strip()))
    refused("train", "smoke", "--problems", problem_file(row(id="y"), bad), says=("rows.jsonl", "problem x"))
    assert not Path(out).exists()
    return f"{len(cases) + 1} rows"


@gate.invariant("grade and convert keep what they read, and refuse a wrong output or number before any work")
def _():
    problems, given = Path(problem_file(row(id="x"))), responses(response())
    before = problems.read_bytes(), given.read_bytes()
    options = ("grade", "--problems", str(problems), "--responses", str(given))
    (FOLDER / "link.jsonl").symlink_to(given)
    for out in (problems, given, FOLDER / "link.jsonl", FOLDER / ".." / FOLDER.name / "rows.jsonl"):
        refused(*options, "--out", str(out), says=(str(out), "source itself"))
    refused(*options, "--out", str(FOLDER), says=(str(FOLDER), "folder"))
    for workers in ("0", "-1"):
        refused(*options, "--out", str(FOLDER / "v.jsonl"), "--workers", workers, says=("--workers", workers))
    refused(*options[:1], "--problems", str(FOLDER), *options[3:], "--out", "v", says=("is a folder",))
    assert (problems.read_bytes(), given.read_bytes()) == before
    for line in (DEEP, f'{{"id": {LONG}}}'):
        bad = str(responses(response(), line))
        refused(*options[:4], bad, "--out", str(FOLDER / "v.jsonl"), says=("responses.jsonl:2", "not JSON"))
    convert = ("data", "convert", str(problems), "--out", str(FOLDER / "converted.jsonl"))
    for limit in ("0", "-1"):
        refused(*convert, "--limit", limit, says=("--limit", limit))
    refused("data", "convert", str(problems), "--out", str(problems), says=("source itself",))
    code, out, err = run(*options[:4], str(responses(response())), "--out", str(FOLDER / "v.jsonl"), "--workers", "1")
    assert code == 0 and "1 responses graded" in out, err
    return "4 outputs, 4 numbers, 2 response lines refused; then graded"


@gate.invariant("a prompt's length is that of the problem's longest prompt")
def _():
    config = preset("smoke", "none")
    loaded, _ = load_policy(config)
    problem = builtin_split()[0][0]
    prompts = [render(problem, mode, "train", 0) for mode in MODES]
    lengths = [len(render_prompt(loaded.tokenizer, p.messages)) for p in prompts]
    longest, free = max(lengths), lengths[-1]
    assert prompts[-1].mode == "gt_only" and free < longest
    between = dataclasses.replace(config, env=dataclasses.replace(config.env, max_prompt_tokens=longest - 1))
    for order in (prompts, prompts[::-1]):
        message = refusal(lambda order=order: check_prompt_lengths(loaded, order, between, "eval"))
        assert f"has {longest})" in message and problem.id in message, message
    check_prompt_lengths(loaded, prompts, config, "rollout")
    return f"{longest} tokens with the longest hint, {free} without"


@gate.invariant("teacher modes that no prompt is shown in need no pool")
def _():
    config = preset("smoke", "none")
    env = dataclasses.replace(config.env, modes=("run_tests",))
    rollout = dataclasses.replace(config.rollout, teacher_modes=("file_marker",), pool=str(FOLDER / "no-pool.jsonl"))
    config = dataclasses.replace(config, env=env, rollout=rollout, steps=1, out=FOLDER / "unpooled")
    with contextlib.redirect_stdout(io.StringIO()), open_session(config) as session:
        groups = session.sampler.sample(session.draw.prompts(0), 0)
    sources = [r.source for group in groups for r in group.rollouts]
    assert set(sources) == {"student"} and session.sampler.pool is None
    return f"{len(sources)} student rows"


if __name__ == "__main__":
    gate.main()
