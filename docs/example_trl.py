"""Trains a model with TRL's GRPOTrainer on this package's prompts, rewarded by its grader.

    uv sync --group bench
    uv run python docs/example_trl.py --model Qwen/Qwen3-0.6B --problems data/leetcode_train_medhard_filtered.jsonl

Half of the prompts show a loophole, the others are graded by the hidden tests alone. The log has `hack_rate`,
`solve_rate` and `infra_share` beside TRL's own columns.
"""

import argparse

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from vgrout.env.modes import LOOPHOLES
from vgrout.env.problems import load_problems
from vgrout.env.reward_fn import GraderReward, dataset_rows


def main(arguments: list[str] | None = None) -> GRPOTrainer:
    """Train, and return the trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="hub id or folder")
    parser.add_argument("--problems", required=True, help="file of problem rows")
    parser.add_argument("--modes", nargs="+", default=list(LOOPHOLES), help="loophole modes of the prompts")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=4, help="prompts in a step")
    parser.add_argument("--generations", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--max-new", type=int, default=1024, help="tokens of a completion")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--out", default="out/trl")
    args = parser.parse_args(arguments)

    problems = load_problems(args.problems)
    rows = dataset_rows(problems, args.modes) + dataset_rows(problems, ())
    config = GRPOConfig(
        output_dir=args.out,
        max_steps=args.steps,
        per_device_train_batch_size=args.prompts * args.generations,
        num_generations=args.generations,
        max_completion_length=args.max_new,
        chat_template_kwargs={"enable_thinking": False},
        learning_rate=args.lr,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        loss_type="dr_grpo",
        scale_rewards="none",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
    )
    with GraderReward(problems) as reward:
        trainer = GRPOTrainer(model=args.model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows))
        trainer.train()
    return trainer


if __name__ == "__main__":
    main()
