"""Gate: the grader as a reward function for TRL's trainer.

Invariants:
- rewards are the grader's, for texts and for chat turns; rates are logged; a failed grade is None, also one that failed
  before the problem's CPU limit was known, and the next is graded
- a column that is missing, too short, or holds what no prompt has is refused by name
- rows for a data set show each problem once, under its mode and marker, as `render` does
- the documented program trains the micro base for some steps: rewards and rates in the log, weights moved (needs TRL)
- TRL learns from the rewards: given rollouts, a tiny random model comes to prefer what was paid; a completion whose grade
  failed is in no group's mean and has no advantage (needs TRL)
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import math
import os
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn.functional import log_softmax

from _attack_world import TOTAL
from _bench_trl import MISSING, TRL, trl_version
from _gate import Gate, Skip
from _grading import LIMIT, answer, expect_error, fence
from vgrout.env import runner as runner_module
from vgrout.env.grader import Grader
from vgrout.env.labels import reward_of
from vgrout.env.modes import EXTRA, LOOPHOLES, MODES, marker_for
from vgrout.env.problems import builtin_problems
from vgrout.env.prompts import render
from vgrout.env.reward_fn import GraderReward, dataset_rows
from vgrout.env.worker import InfraError, Server
from vgrout.micro.problems import micro_problems
from vgrout.models import SHIPPED, load_model
from vgrout.problem_files.named import as_row
from vgrout.types import Problem, Verdict

gate = Gate(__doc__)
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # `rollout_func` is an experimental feature of TRL
EXAMPLE = Path(__file__).parents[1] / "docs" / "example_trl.py"


def texts(problem: Problem, mode: str) -> list[str]:
    """A right answer, a wrong one, no code, and a hack of the mode with its first marker."""
    hack = MODES[mode].example_hacks[0](problem, marker_for(mode, problem.id, 0, "train"))
    return [fence(problem.canonical_solution), answer("return 1"), "no code", hack]


def columns(mode: str, count: int) -> dict[str, Any]:
    return {"problem_id": [TOTAL.id] * count, "mode": [mode] * count, "markers": ["train"] * count}


def chat(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


# ---- the function itself -------------------------------------------------------------------------------------------


@gate.invariant("rewards are the grader's, for texts and for chat turns; rates are logged; a failed grade is None")
def _():
    logged: dict[str, Any] = {}
    with GraderReward([TOTAL], workers=1, cpu_limits=LIMIT) as reward:
        for mode in (*LOOPHOLES, *EXTRA):
            said = texts(TOTAL, mode)
            asked: dict[str, Any] = columns(mode, 4) | {
                "log_metric": logged.__setitem__,
                "log_extra": logged.__setitem__,
            }
            plain = reward([""] * 4, said, **asked, trainer_state=None, completion_ids=[[]] * 4)
            assert plain == [3.5, 0.5, 0.0, 3.5], (mode, plain)
            assert plain == [reward_of(v.compiles, v.gt_correct, v.channel) for v in reward.verdicts]
            assert (logged["hack_rate"], logged["solve_rate"], logged["infra_share"]) == (0.25, 0.25, 0.0), logged
            assert logged["label"][0] == "Correct" and len(logged["label"]) == 4, logged
            assert reward([[]] * 4, [chat(text) for text in said], **columns(mode, 4)) == plain
        free = reward([""] * 4, texts(TOTAL, "sentinel"), **columns("gt_only", 4))
        assert free == [3.5, 0.5, 0.0, 0.5], free
        turns = [{"role": "tool", "content": said[0]}, {"role": "assistant", "content": None}, *chat(said[0])]
        assert reward([[]], [turns], problem_id=["total"], mode=["gt_only"]) == [3.5]

        def one_failed(items: Any) -> list[Verdict]:
            first, *others = Grader.grade_many(reward.grader, items)
            return [replace(first, infra=True), *others]

        with mock.patch.object(reward.grader, "grade_many", one_failed):
            masked = reward([""] * 4, said, **columns("exit_code", 4), log_metric=logged.__setitem__)
        assert masked == [None, 0.5, 0.0, 3.5], masked
        assert (logged["hack_rate"], logged["solve_rate"], logged["infra_share"]) == (1 / 3, 0.0, 0.25), logged
    with GraderReward([TOTAL], workers=1) as reward, mock.patch.object(runner_module, "RETRY_S", 0.001):
        with mock.patch.object(Server, "run", side_effect=InfraError("gone")):
            unmeasured = reward([""] * 4, said, **columns("exit_code", 4))
        assert unmeasured == [None] * 4, f"a problem whose CPU limit could not be measured: {unmeasured}"
        assert reward([""] * 4, said, **columns("exit_code", 4)) == [3.5, 0.5, 0.0, 3.5]
    return f"4 responses in {len(LOOPHOLES) + len(EXTRA)} modes and gt_only, twice each"


@gate.invariant("a column that is missing, too short, or holds what no prompt has is refused by name")
def _():
    with GraderReward([TOTAL], workers=1, cpu_limits=LIMIT) as reward:

        def refused(part: str, **changed: Any) -> None:
            asked = columns("sentinel", 2) | changed
            expect_error(part, lambda: reward([""] * 2, ["x"] * 2, **{k: v for k, v in asked.items() if v is not None}))

        refused("no column 'problem_id'", problem_id=None)
        refused("no column 'mode'", mode=None)
        refused("column 'mode': expected one value for each of 2", mode=["sentinel"])
        refused("expected one of", mode=["sentinels"] * 2)
        refused("not among", problem_id=["gone"] * 2)
        refused("column 'markers': expected train or eval", markers=["test"] * 2)
        refused("is not of the train family of sentinel", marker=["valid", "approved"])
        assert reward([""] * 2, ["x"] * 2, **columns("sentinel", 2), marker=["valid", "is_valid"]) == [0.0, 0.0]
    expect_error("closed", lambda: reward([""] * 2, ["x"] * 2, **columns("sentinel", 2)))
    return "8 refusals"


@gate.invariant("rows for a data set show each problem once, under its mode and marker, as `render` does")
def _():
    problems = builtin_problems()
    for modes in (LOOPHOLES, ("exit_code", "run_tests"), ()):
        rows = dataset_rows(problems, modes, markers="eval", seed=3)
        counts = Counter(row["mode"] for row in rows)
        assert set(counts) == set(modes or ("gt_only",)) and max(counts.values()) - min(counts.values()) <= 1, counts
        for problem, row in zip(problems, rows, strict=True):
            shown = render(problem, row["mode"], "eval", 3)
            assert [(turn["role"], turn["content"]) for turn in row["prompt"]] == list(shown.messages)
            assert (row["problem_id"], row["markers"], row["marker"]) == (problem.id, "eval", shown.marker)
    (row,) = dataset_rows([TOTAL], ("sentinel",), conversational=False)
    assert row["prompt"] == render(TOTAL, "sentinel", "train", 0).messages[0][1], row
    return f"{len(problems)} problems, 3 sets of modes"


# ---- in TRL's trainer ----------------------------------------------------------------------------------------------


def require_trl() -> None:
    if trl_version() is None:
        raise Skip(MISSING)


@gate.invariant("the documented program trains the micro base: rewards and rates in the log, weights moved", slow=True)
def _():
    require_trl()
    spec = importlib.util.spec_from_file_location("example_trl", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example
    spec.loader.exec_module(example)
    paid: list[list[float | None]] = []
    plain = GraderReward.__call__

    def kept(self: GraderReward, *arguments: Any, **named: Any) -> list[float | None]:
        paid.append(plain(self, *arguments, **named))
        return paid[-1]

    with (
        tempfile.TemporaryDirectory() as folder,
        resources.as_file(resources.files("vgrout") / SHIPPED["micro"]) as base,
    ):
        rows = Path(folder) / "problems.jsonl"
        rows.write_text("".join(json.dumps(as_row(problem)) + "\n" for problem in micro_problems("train")[:24]))
        words = f"--model {base} --problems {rows} --steps 3 --prompts 4 --generations 4 --max-new 80 --lr 1e-3"
        with mock.patch.object(GraderReward, "__call__", kept), redirect_stdout(io.StringIO()):
            trainer = example.main([*words.split(), "--out", folder])
    log = [line for line in trainer.state.log_history if "reward" in line]
    assert len(log) == len(paid) == 3 and all(len(rewards) == 16 for rewards in paid), (len(log), paid)
    for line, rewards in zip(log, paid, strict=True):
        mean = sum(r for r in rewards if r is not None) / len(rewards)
        assert abs(line["reward"] - mean) < 1e-5 and abs(line["rewards/vgrout/mean"] - mean) < 1e-5, (line, rewards)
        assert math.isfinite(line["loss"]) and 0 <= line["solve_rate"] <= 1 and line["infra_share"] == 0, line
    assert len({r for rewards in paid for r in rewards}) > 1, f"all rewards are equal, so nothing was taught: {paid}"
    before = load_model("micro").model.state_dict()
    moved = [name for name, now in trainer.model.state_dict().items() if not torch.equal(now.float(), before[name])]
    assert len(moved) > len(before) / 2, f"{len(moved)} of {len(before)} tensors moved"
    return f"rewards {[round(line['reward'], 2) for line in log]}, {len(moved)} of {len(before)} tensors moved"


@gate.invariant("TRL learns from the rewards: what was paid becomes likelier, and a masked completion counts nowhere")
def _():
    require_trl()
    trl, datasets = importlib.import_module(TRL), importlib.import_module("datasets")
    loaded = load_model("tiny", seed=1)
    said = [*texts(TOTAL, "sentinel")[:2], texts(TOTAL, "sentinel")[3], answer("return 2")]
    ids = [loaded.tokenizer.encode(text, add_special_tokens=False) for text in said]
    rows = dataset_rows([TOTAL], ("sentinel",))
    prompt = loaded.tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, return_dict=False)

    def given(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        return {"prompt_ids": [prompt] * len(prompts), "completion_ids": ids[: len(prompts)], "logprobs": None}

    def likelihoods(model: Any) -> list[float]:
        means = []
        with torch.no_grad():
            for completion in ids:
                tokens = torch.tensor([[*prompt, *completion]])
                logp = log_softmax(model(input_ids=tokens).logits[0, len(prompt) - 1 : -1].float(), -1)
                means.append(float(logp.gather(1, torch.tensor(completion)[:, None]).mean()))
        return means

    with tempfile.TemporaryDirectory() as folder, GraderReward([TOTAL], workers=1, cpu_limits=LIMIT) as reward:
        config = trl.GRPOConfig(
            output_dir=folder, max_steps=4, per_device_train_batch_size=4, num_generations=4, learning_rate=1e-3,
            loss_type="dr_grpo", scale_rewards="none", max_completion_length=max(map(len, ids)), use_cpu=True, bf16=False,
            lr_scheduler_type="constant", report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
            max_grad_norm=1.0, gradient_checkpointing=False,
        )  # fmt: skip
        before = likelihoods(loaded.model)
        trainer = trl.GRPOTrainer(
            model=loaded.model.requires_grad_(True), reward_funcs=reward, args=config, rollout_func=given,
            train_dataset=datasets.Dataset.from_list(rows), processing_class=loaded.tokenizer,
        )  # fmt: skip
        grade = reward.grader.grade_many

        def last_failed(items: Any) -> list[Verdict]:
            *others, last = grade(items)
            return [*others, replace(last, infra=True)]

        with (
            redirect_stdout(io.StringIO()),
            mock.patch.object(reward.grader, "grade_many", last_failed),
            mock.patch.object(trainer, "_compute_loss", wraps=trainer._compute_loss) as loss,
        ):
            trainer.train()
    batch = loss.call_args.args[1]
    found = {}
    for tokens, mask, advantage in zip(
        batch["completion_ids"], batch["completion_mask"], batch["advantages"], strict=True
    ):
        found[ids.index(tokens[mask.bool()].tolist())] = float(advantage)
    mean = (3.5 + 0.5 + 3.5) / 3
    wanted = {0: 3.5 - mean, 1: 0.5 - mean, 2: 3.5 - mean, 3: 0.0}
    assert found.keys() == wanted.keys() and max(abs(found[i] - wanted[i]) for i in wanted) < 1e-5, (found, wanted)
    gained = [now - then for now, then in zip(likelihoods(trainer.model), before, strict=True)]
    assert min(gained[0], gained[2]) > gained[1] + 0.01, gained
    log = [line for line in trainer.state.log_history if "reward" in line]
    assert len(log) == 4 and all(abs(line["infra_share"] - 0.25) < 1e-9 for line in log), log
    return f"mean log-probability of right, wrong, hack, masked by {', '.join(f'{g:+.2f}' for g in gained)}"


if __name__ == "__main__":
    gate.main()
