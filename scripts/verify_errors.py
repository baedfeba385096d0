"""A user's mistake: one line that names the thing and the remedy, a non-zero exit, nothing half-written.

Invariants, each shown through the command line as a user types it:
- a malformed problem row is named by file, line and field; a missing or doubled hint slot by problem;
- unknown command, preset, intervention, mode, option, model, dtype and device are refused with what is expected;
- an upper bound without its permission, a model without target linears, an unwritable out folder;
- overlapping problem sets, prompts that are too long, a teacher pool that does not cover the problems;
- a checkpoint of another model, rank or seed, a damaged one, and a folder that is no run.
None leaves a run folder or a temporary file behind, and none prints a traceback.
"""

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

from _gate import Gate
from vgrout import cli
from vgrout.env.problems import builtin_split
from vgrout.presets import preset
from vgrout.run.console import setup_console
from vgrout.train import train

gate = Gate(__doc__)
ROOT = tempfile.TemporaryDirectory(prefix="vgrout-verify-errors-")
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


@gate.invariant("malformed problem rows: file, line and field")
def _():
    slot = "and should pass all tests"
    cases = {
        "gt_answer": row(id="x", gt_answer=["print(1)"]),
        "func_name": row(id="x", func_name="twoSum"),
        "difficulty": {k: v for k, v in row(id="x").items() if k != "difficulty"},
        "prompt": row(id="x", prompt=with_hint(lambda text: text.replace(slot, ""))),
        "prompt ": row(id="x", prompt=with_hint(lambda text: text.replace(slot, f"{slot} {slot}"))),
        "JSON": '{"id": 3,',
    }
    for field, bad in cases.items():
        message = refused(
            "train", "smoke", "--problems", problem_file(row(), bad), says=("rows.jsonl:2", field.strip())
        )
        assert "expected" in message or "JSON" in message, message
    refused("train", "smoke", "--problems", str(FOLDER / "absent.jsonl"), says=("absent.jsonl", "no such file"))
    return f"{len(cases) + 1} malformed files"


@gate.invariant("unknown names are refused with what is expected")
def _():
    refused("trian", says=("trian", "train"))
    refused("train", "smok", says=("smok", "smoke"))
    refused("train", "smoke", "--intervention", "ereas", says=("ereas", "none, none_full, absorb"))
    refused("train", "smoke", "--env.modes", "run_test", says=("run_test", "run_tests"))
    refused("train", "smoke", "--model.name", "/nowhere/model", says=("/nowhere/model", "folder"))
    refused("train", "smoke", "--model.device", "tpu", says=("tpu", "cpu"))
    values = {
        "--steps": "-1",
        "--grpo.group-size": "1",
        "--grpo.token-budget": "0",
        "--grpo.beta": "-1",
        "--grpo.logp-chunk": "0",
        "--env.workers": "0",
        "--rollout.temperature": "0",
        "--rollout.max-rows": "0",
        "--rollout.mix-ratio": "2",
        "--rollout.teacher-modes": "foo",
        "--adapter.rank": "0",
        "--eval.problems": "0",
        "--optim.lr": "-1",
        "--name": "a/b",
    }
    for option, value in values.items():
        refused("train", "smoke", option, value, says=(value.split("/")[0],))
    code, out, err = run("train", "smoke", "--seeed", "1")
    assert code == 2 and "seeed" in out + err and "Traceback" not in err, (out, err)
    return f"7 unknown names, {len(values)} values out of range"


@gate.invariant("upper bound, model without targets, unwritable folder, overlap, long prompts, uncovered pool")
def _():
    refused("train", "smoke", "--intervention", "label_route", says=("label_route", "--allow-oracle"))
    refused("train", "smoke", "--model.name", str(gpt2()), says=("no target linear", "q_proj", "lm_head"))
    in_the_way = FOLDER / "a-file"
    in_the_way.write_text("")
    refused("train", "smoke", "--out", str(in_the_way / "out"), says=(str(in_the_way), "folder"))
    same = problem_file(row(), row(id="another"))
    refused("train", "smoke", "--problems", same, "--eval-problems", same, says=("disjoint", "another"))
    refused("train", "smoke", "--env.max-prompt-tokens", "20", says=("20 tokens", "--env.max-prompt-tokens"))
    pool = FOLDER / "pool.jsonl"
    pool.write_text(json.dumps({"problem_id": "elsewhere", "mode": "sentinel", "response": "x"}) + "\n")
    refused("train", "smoke", "--rollout.pool", str(pool), says=("teacher pool", "no row"))
    return "6 mistakes"


@gate.invariant("a run in which nothing earns a reward says so in one line, and its folder says failed")
def _():
    out = FOLDER / "idle"
    code, _, err = run("train", "smoke", "--rollout.mix-ratio", "0", "--steps", "2", "--out", str(out))
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and "has not moved" in line and "--rollout.mix-ratio" in line and "Traceback" not in err, err
    (folder,) = (out / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    return line.removeprefix("error: ")[:60]


@functools.cache
def gpt2() -> Path:
    """A saved model of another family, whose projections are not nn.Linear, with the tiny tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from vgrout.models import load_model

    folder = FOLDER / "gpt2"
    tokenizer = load_model("tiny").tokenizer
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def finished_run() -> Path:
    """A short finished run outside the folder whose emptiness is asserted."""
    base = preset("smoke", "none")
    evaluation = dataclasses.replace(base.eval, problems=1, free_prompts=False)
    config = dataclasses.replace(base, steps=1, out=FOLDER / "finished", eval=evaluation)
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


@gate.invariant("checkpoints of another model, rank or seed; damaged ones; folders that are no run")
def _():
    checkpoint = finished_run() / "checkpoints" / "ckpt_update0001.safetensors"
    option = ("--checkpoint", str(checkpoint))
    refused("eval", str(altered("rank", "adapter", rank=2)), *option, says=("ckpt_update0001", "rank", "4", "2"))
    refused("eval", str(altered("seed", "adapter", init_seed=7)), *option, says=("init_seed", "0", "7"))
    refused("eval", str(altered("model", "model", name="tiny:a")), *option, says=("model", "tiny:a"))
    refused("eval", str(altered("weights", "model", seed=3)), *option, says=("revision",))
    torn = FOLDER / "torn.safetensors"
    torn.write_bytes(checkpoint.read_bytes()[:-100])
    refused("eval", str(finished_run()), "--checkpoint", str(torn), says=("torn.safetensors", "not a complete"))
    refused("eval", str(FOLDER), says=("not a run folder",))
    code, out, err = run("eval", str(finished_run()), *option)
    assert code == 0 and "deploy" in out, err
    return "6 refused, the run's own checkpoint accepted"


if __name__ == "__main__":
    gate.main()
