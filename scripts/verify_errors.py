"""A user's mistake: one line that names the thing and the remedy, a non-zero exit, nothing half-written.

Invariants, each shown through the command line as a user types it:
- a malformed problem row is named by file, line and field; a missing or doubled hint slot by problem;
- unknown command, preset, intervention, mode, option, model, dtype and device are refused with what is expected;
- a value out of range is refused under its option's name, before anything is loaded; so is what no option can be;
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
from pathlib import Path

from _cli import FOLDER, altered, finished_run, problem_file, refused, row, run, with_hint
from _gate import Gate
from vgrout import cli
from vgrout.config import MAX_INIT_SEED, MAX_SEED
from vgrout.inputs import load_policy
from vgrout.presets import preset

gate = Gate(__doc__)


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
    refused("train", "smoke", "--intervention", "ereas", says=("ereas", "none, none_full, erase"))
    refused("train", "smoke", "--env.modes", "run_test", says=("run_test", "run_tests"))
    refused("train", "smoke", "--model.name", "/nowhere/model", says=("/nowhere/model", "folder"))
    refused("train", "smoke", "--model.device", "tpu", says=("tpu", "cpu"))
    erase = ("train", "smoke", "--intervention", "erase", "--model.name", "/nowhere/model")  # pairs are read before it
    refused(*erase, "--pairs", "corr", says=("corr", "core"))
    refused(*erase, "--pairs", "core@nothing", says=("core@nothing", "run_tests"))
    refused(*erase, "--direction", "content:absent.md", says=("absent.md",))
    refused(*erase, "--direction", "oracle:absent.jsonl", says=("oracle:absent.jsonl", "--allow-oracle"))
    refused(*erase, "--direction", "oracle:absent.jsonl", "--allow-oracle", says=("absent.jsonl",))
    return "10 unknown names"


VALUES = {
    "--steps": ("-1",),
    "--grpo.group-size": ("1",),
    "--grpo.token-budget": ("0",),
    "--grpo.beta": ("-1", "inf", "nan"),
    "--grpo.logp-chunk": ("0",),
    "--env.workers": ("0",),
    "--rollout.temperature": ("0", "nan", "inf"),
    "--rollout.top-p": ("0", "2"),
    "--rollout.top-k": ("-1",),
    "--rollout.max-new": ("0", "100000"),
    "--rollout.max-rows": ("0",),
    "--rollout.mix-ratio": ("2", "nan"),
    "--rollout.teacher-modes": ("foo",),
    "--adapter.rank": ("0",),
    "--adapter.init-seed": ("-1", str(MAX_INIT_SEED + 1)),
    "--model.seed": ("-1",),
    "--model.threads": ("0",),
    "--eval.problems": ("0",),
    "--eval.temperature": ("-1", "nan"),
    "--eval.top-p": ("0",),
    "--eval.max-new": ("0", "100000"),
    "--eval.seed": ("-1",),
    "--optim.lr": ("-1", "0", "inf", "nan", "1e30"),
    "--optim.betas": ("2 2", "0.9 1", "nan 0"),
    "--optim.eps": ("-1", "0", "inf"),
    "--optim.weight-decay": ("-5", "nan", "2"),
    "--optim.grad-clip": ("0", "nan"),
    "--seed": ("-1", str(MAX_SEED + 1), "x"),
    "--name": ("a/b",),
    "--intervention": ("", "--steps"),
    "--seeed": ("1",),
    "--eval.views": ("top",),
    "--extraction.top-k": ("0",),
    "--extraction.k-use": ("0", "13"),
    "--extraction.noise-floor": ("-0.1", "1", "nan"),
    "--extraction.refresh-every": ("-1",),
    "--extraction.token-budget": ("0",),
    "--direction": ("haar", "haar:x", "real:1", "other:1", "content:"),
    "--adapter.kind": ("lora3r",),
    "--design": ("vhack-v9",),
}
NAMED_OTHERWISE = {
    "--steps": "steps -1",
    "--grpo.group-size": "--grpo.group_size",
    "--grpo.token-budget": "--grpo.token_budget",
    "--grpo.logp-chunk": "--grpo.logp_chunk",
    "--env.workers": "workers 0",
    "--rollout.max-rows": "--rollout.max_rows",
    "--rollout.teacher-modes": "'foo'",
    "--adapter.rank": "rank",
    "--eval.problems": "problems 0",
    "--name": "run name",
}
"""What the message says in the place of the option."""


@gate.invariant("a value out of range is refused under its option's name, in one line")
def _():
    for option, values in VALUES.items():
        for value in values:
            refused("train", "smoke", option, *value.split(), says=(NAMED_OTHERWISE.get(option, option),))
    refused("train", "smoke", "--seed", "", says=("--seed",))
    unloaded = ("train", "smoke", "--model.name", "/nowhere/model")
    for option, value in (("--eval.temperature", "-1"), ("--rollout.max-new", "0"), ("--rollout.mix-ratio", "2")):
        refused(*unloaded, option, value, says=(option,))
    refused("eval", says=("PATH", "vgrout eval --help"))
    for command in (("demo",), ("grade",), ("data", "convert"), ("micro", "base")):
        refused(*command, "--sedes", "1", says=(f"vgrout {' '.join(command)} --help",))
    refused("eval", "x", "--eval-problem", "y", says=("--eval-problem", "perhaps you meant --eval-problems"))
    messages = {}
    for encoding in ("utf-8", "ascii"):  # tyro draws its boxes otherwise
        screen, err = io.TextIOWrapper(io.BytesIO(), encoding=encoding), io.StringIO()
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            cli.main(["train", "smoke", "--seeed", "1"])
        messages[encoding] = err.getvalue()
    assert messages["utf-8"] == messages["ascii"] and "(perhaps you meant --seed INT); see" in err.getvalue(), messages
    base = preset("smoke", "none")
    load_policy(  # the largest seeds can be used
        dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, seed=MAX_SEED),
            adapter=dataclasses.replace(base.adapter, init_seed=MAX_INIT_SEED),
        )
    )
    code, out, err = run("eval", "--help")
    assert code == 0 and "--checkpoint" in out and not err, (code, out, err)
    code, out, err = run("train", "smoke", "--help")
    assert code == 0 and "--optim.betas" in out and not err, (code, err)
    return f"{sum(map(len, VALUES.values()))} values of {len(VALUES)} options; --help goes to standard output"


@gate.invariant("upper bound, model without targets, unwritable folder, overlap, long prompts, uncovered pool")
def _():
    refused("train", "smoke", "--intervention", "label_route", says=("label_route", "--allow-oracle"))
    refused("train", "smoke", "--model.name", str(gpt2()), says=("no target linear", "q_proj", "lm_head"))
    in_the_way = FOLDER / "a-file"
    in_the_way.write_text("")
    refused("train", "smoke", "--out", str(in_the_way / "out"), says=(str(in_the_way), "folder"))
    renumbered = Path(problem_file(row(id="renumbered"))).rename(FOLDER / "renumbered.jsonl")
    same = problem_file(row(), row(id="another"))
    refused("train", "smoke", "--problems", same, "--eval-problems", same, says=("disjoint", "another"))
    refused("train", "smoke", "--problems", same, "--eval-problems", str(renumbered), says=("disjoint", "statements"))
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
    assert code == 0 and "quarantine-ablated" in out, err
    return "6 refused, the run's own checkpoint accepted"


if __name__ == "__main__":
    gate.main()
