"""TRL's GRPOTrainer as a system of the step benchmark, and its comparison with the floor.

The trainer is the library's own, set to the same work: HF generate over all P x G rows, PEFT LoRA of the same total rank on
the same linears, the KL to the model without the adapter, Dr. GRPO's loss without scaling of rewards, no checkpointing, no
logging. A step is what its training loop does for a batch: `training_step` (sampling, rewards, reference, forward, backward),
clipping, AdamW, schedule. Its loop itself, which turns callbacks and the data loader, is left out.
"""

from __future__ import annotations

import copy
import importlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Int
from peft import LoraConfig
from torch import Tensor, nn

from _bench import PlainFloor, System, adapter_init
from _bench_equality import compared, gradients, load, moved, worst
from _bench_work import RANK, Work

TRL = "trl"
MISSING = (
    "trl is left out: TRL is not installed here; `uv pip install 'trl==1.16.*'` adds it to the environment that runs this, "
    "`uv sync --group bench` makes one with it from the lock"
)


def trl_version() -> str | None:
    """The installed version; None where there is none."""
    return metadata.version(TRL) if find_spec(TRL) else None


class Trl(System):
    """One GRPOTrainer, stepped by hand."""

    def __init__(self, work: Work):
        super().__init__(work)
        self.step_now = 0
        self.trainer = make_trainer(work, self.reward)
        self.trainer.model_wrapped, _ = self.trainer._prepare_for_training(1, self.trainer.get_train_dataloader(), None)
        self.trainer.current_gradient_accumulation_steps = 1
        G = work.settings.group_size
        self.batch = [{"prompt": turns(work, i)} for i in range(len(work.prompts)) for _ in range(G)]
        self.phases.watch(self.trainer, "_generate_single_turn", "generate")
        self.phases.watch(self.trainer, "_get_per_token_logps_and_entropies", "reference", without_gradient=True)
        self.phases.watch(self.trainer, "_compute_loss", "fwd+bwd")
        self.phases.watch(self.trainer.accelerator, "backward", "fwd+bwd")

    def reward(self, *, completions: list[Any], **_: Any) -> list[float]:
        rewards = self.work.rewards(self.step_now).flatten().tolist()
        assert len(completions) == len(rewards), (len(completions), len(rewards))
        return rewards

    def step(self, step: int) -> None:
        with self.phases.phase("other"):
            self.train(step)
        with self.phases.phase("optimize"):
            self.optimize(step)

    def train(self, step: int) -> float:
        """Rollouts of this step and the gradients of their loss; returns the loss."""
        self.step_now = step
        return float(self.trainer.training_step(self.trainer.model_wrapped, self.batch, None))

    def optimize(self, step: int) -> None:
        """As the trainer's loop after the backward of a batch."""
        t = self.trainer
        t._clip_grad_norm(t.model_wrapped)
        t.optimizer.step()
        t.lr_scheduler.step()
        t.model_wrapped.zero_grad()
        t.state.global_step += 1

    def greedy(self) -> Int[Tensor, "N T"]:
        """What the trainer's own generation yields at temperature 0."""
        t = self.trainer
        t.generation_config.do_sample = False
        prompt_ids, images, fields = t._tokenize_prompts([row["prompt"] for row in self.batch])
        completions, _ = t._generate_single_turn(prompt_ids, images, fields, t.num_generations)
        t.generation_config.do_sample = True
        return torch.tensor(completions)

    def give(self, prompts: Int[Tensor, "P L"], completions: Int[Tensor, "N T"]) -> None:
        """From now on the trainer's rollouts are these, through its own `rollout_func`."""
        G = self.work.settings.group_size
        given = {"prompt_ids": prompts.repeat_interleave(G, 0).tolist(), "completion_ids": completions.tolist()}
        self.trainer.rollout_func = lambda prompts, trainer: given | {"logprobs": None}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every linear, in the order of the model's modules."""
        linears = [m for m in self.trainer.model.modules() if hasattr(m, "lora_A")]
        return [factor["default"].weight for m in linears for factor in (m.lora_A, m.lora_B)]


def make_trainer(work: Work, reward: Any) -> Any:
    """A GRPOTrainer for this work. TRL is imported here, for it takes seconds and may be missing."""
    trl, datasets = importlib.import_module(TRL), importlib.import_module("datasets")
    s, rows = work.settings, len(work.prompts) * work.settings.group_size
    # No sampled token is this one, so that none ends a completion and all have the same length.
    never = work.model.get_input_embeddings().num_embeddings
    config = trl.GRPOConfig(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=s.group_size,
        max_completion_length=s.max_new,
        temperature=1.0,
        generation_kwargs={"eos_token_id": [never]},
        chat_template_kwargs={"enable_thinking": False},
        loss_type="dr_grpo",
        scale_rewards="none",
        beta=s.beta,
        epsilon=s.clip,
        use_bias_correction_kl=False,
        learning_rate=s.lr,
        lr_scheduler_type="constant",
        adam_beta1=s.betas[0],
        adam_beta2=s.betas[1],
        weight_decay=s.decay,
        max_grad_norm=s.grad_clip,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=work.model.device.type == "cpu",
        shuffle_dataset=False,
        max_steps=1,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=copy.deepcopy(work.model),
        reward_funcs=reward,
        args=config,
        train_dataset=datasets.Dataset.from_list([{"prompt": turns(work, i)} for i in range(len(work.prompts))]),
        processing_class=copy.deepcopy(work.tokenizer),
        peft_config=LoraConfig(r=2 * RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=r".*_proj"),
    )
    trainer.eos_token_ids = [never]
    return trainer


def turns(work: Work, index: int) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in work.prompts[index].messages]


def trl_equality(work: Work) -> Iterator[str]:
    """Asserts that TRL and the floor compute the same; yields one line for each comparison. `work` must be in fp32.

    PEFT's reference is the model without its adapter. So the floor is given the same adapter with an init whose B0 is 0. The
    KL has coefficient 1 here, for at the one that is timed an error in its gradient would be lost among the rewards.
    """
    work = replace(work, settings=replace(work.settings, beta=1.0))
    init = adapter_init(work)
    plain, other = PlainFloor(work, inits=[(A, torch.zeros_like(B)) for A, B in init]), Trl(work)
    values = [moved(factor, seed) for seed, factor in enumerate(f for pair in init for f in pair)]
    load(plain.floor.parameters, values)
    load(other.parameters, values)
    prompts, G = plain.prompts, work.settings.group_size
    tokenized, _, _ = other.trainer._tokenize_prompts([row["prompt"] for row in other.batch])
    assert tokenized == prompts.repeat_interleave(G, 0).tolist(), "TRL renders the prompts otherwise"
    with torch.no_grad():
        logits = [m(input_ids=prompts).logits for m in (plain.floor.model, other.trainer.model)]
    yield compared("trl: logits", worst(logits[:1], logits[1:]))

    greedy, tokens = plain.floor.generate(prompts, greedy=True).clone(), other.greedy()
    same = int((greedy.cpu() == tokens).sum())
    assert same == tokens.numel(), f"trl: {tokens.numel() - same} of {tokens.numel()} greedy tokens differ"
    yield f"trl: {same} of {tokens.numel()} greedy tokens equal"

    plain.generate(0)
    other.give(prompts, plain.completions)
    expected, loss = plain.train(0), other.train(0)
    yield compared("trl: loss of the floor's rollouts", abs(loss - expected) / abs(expected))
    error = worst(gradients(plain.floor.parameters), gradients(other.parameters))
    yield compared("trl: gradients of A and B", error)
    yield "trl: not compared: sampled tokens (other random streams), the decay of the step (toward 0, not the init)"
