"""The step benchmark's common work and its systems, each as the same three phases.

Work: P prompts of exactly 200 tokens, G rollouts each, a fixed number of forced new tokens (no token ends a completion),
a varied reward that takes no time, a LoRA of total rank 32 on every projection, the KL to the initial policy on.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench_floor import Floor, Settings
from vgrout.adapter import AdapterConfig, attach
from vgrout.directions.config import ExtractionConfig
from vgrout.directions.direction import Extractor
from vgrout.directions.gradient import encode
from vgrout.directions.live import LiveDirection
from vgrout.directions.meter import Meter
from vgrout.directions.pairs import load_pairs
from vgrout.directions.placebo import Source
from vgrout.grpo import GrpoConfig
from vgrout.interventions import INTERVENTIONS, intervention_class
from vgrout.measure import gradient_norms
from vgrout.models import load_model, render_prompt, shipped_texts
from vgrout.optim import OptimConfig, Optimizer
from vgrout.policy import Policy
from vgrout.rollout.base import GroupPlan, GroupSampler, SamplingParams
from vgrout.rollout.hf import HFSampler
from vgrout.types import Group, Prompt, Seen, UserError
from vgrout.update import UpdateStats, update

FLOORS = ("floor", "floor_prefix")
SYSTEMS = (*FLOORS, *INTERVENTIONS, "none@delta_s", "erase@delta_s")
"""Interventions are on lora2r where no adapter is named behind an @."""
RANK = 16
"""Of one block; the adapter's total rank, and the floor's, is twice this."""


@dataclass(frozen=True)
class Work:
    """What every system is given: its own copy of `model` is made from it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: tuple[Prompt, ...]
    settings: Settings

    def rewards(self, step: int) -> Float[Tensor, "P G"]:
        """Varied within every group, so that no group is without spread and every row is trained."""
        P, G = len(self.prompts), self.settings.group_size
        return 0.5 * ((torch.arange(G) + torch.arange(P)[:, None] + step) % G).float()

    def labels(self, step: int) -> Bool[Tensor, "P G"]:
        """Random labels, about half of the rows."""
        generator = torch.Generator().manual_seed(step)
        return torch.rand(len(self.prompts), self.settings.group_size, generator=generator) < 0.5


def make_work(
    size: str, *, prompts: int, prompt_tokens: int, settings: Settings, dtype: str, device: str, seed: int = 0
) -> Work:
    """The tiny model of `size` (a or b) and distinct prompts of exactly `prompt_tokens` tokens of shipped text."""
    loaded = load_model(f"tiny:{size}", dtype=dtype, device=device, seed=seed)
    made = tuple(_prompt(loaded.tokenizer, index, prompt_tokens) for index in range(prompts))
    assert len({p.messages for p in made}) == prompts
    return Work(loaded.model, loaded.tokenizer, made, settings)


def _prompt(tokenizer: PreTrainedTokenizerBase, index: int, length: int) -> Prompt:
    """A window of the shipped text whose rendered form has the wanted length."""
    text = "\n".join(shipped_texts())
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    for start in range(index * length, len(ids) - length):
        for end in range(start + length, start + length // 2, -1):
            messages = (("user", str(tokenizer.decode(ids[start:end]))),)
            rendered = len(render_prompt(tokenizer, messages))
            if rendered == length:
                return Prompt(f"text{index}", "gt_only", "train", "", messages)
            if rendered < length:
                break
    raise UserError(
        f"prompt {index}: the shipped text of {len(ids)} tokens has no prompt of exactly {length} left; "
        "lower --prompts, or choose other --prompt-tokens"
    )


class System(Protocol):
    """One step is the three phases in turn; what `generate` sampled is kept until `train` has used it."""

    def generate(self, step: int) -> object: ...
    def train(self, step: int) -> object: ...
    def optimize(self, step: int) -> object: ...


class Ours:
    """The package as its training loop runs it, without the grader."""

    def __init__(self, work: Work, intervention: str, *, temperature: float = 1.0):
        s, self.work = work.settings, work
        model = copy.deepcopy(work.model)
        name, _, kind = intervention.partition("@")
        self.adapter = attach(model, AdapterConfig(kind="delta_s" if kind == "delta_s" else "lora2r", rank=RANK))
        self.policy = Policy(model, self.adapter, temperature=1.0, chunk=s.chunk)
        chosen = intervention_class(name)
        self.intervention = chosen(chosen.Settings(), self.adapter, 0)
        self.extraction_s: float | None = None
        """CPU seconds that the direction took; None: this intervention neither uses nor measures one."""
        direction = None
        if chosen.needs_direction or chosen.measures_direction:
            direction, self.extraction_s = live_direction(self.policy, work)
        self.intervention.prepare(direction)
        self.meter = Meter(self.adapter, direction)
        params = SamplingParams(max_new=s.max_new, temperature=temperature)
        student = HFSampler(model, work.tokenizer, self.adapter, params, 0)
        student._stop = frozenset()  # forced length: no token ends a completion
        self.sampler = GroupSampler(student, None, GroupPlan(s.group_size), deploy_view=chosen.routed)
        self.optimizer = Optimizer(
            self.adapter,
            OptimConfig(lr=s.lr, warmup_steps=0, betas=s.betas, weight_decay=s.decay, grad_clip=s.grad_clip),
        )
        self.grpo = GrpoConfig(
            prompts_per_step=len(work.prompts),
            group_size=s.group_size,
            clip=s.clip,
            beta=s.beta,
            logp_chunk=s.chunk,
            checkpoint_activations=False,
        )
        self.groups: tuple[Group, ...] = ()

    def generate(self, step: int) -> None:
        self.groups = self.sampler.sample(self.work.prompts, step)

    def seen(self, step: int) -> Seen:
        rewards = tuple(tuple(row) for row in self.work.rewards(step).tolist())
        keep = tuple((True,) * len(row) for row in rewards)
        labels = tuple(tuple(row) for row in self.work.labels(step).tolist()) if self.intervention.oracle else None
        return Seen(rewards, keep, labels)

    def train(self, step: int) -> UpdateStats:
        seen = self.seen(step)
        rewards, keep = self.intervention.shape_rewards(seen)
        max_new = self.work.settings.max_new
        stats = update(
            self.policy, self.groups, seen, rewards, keep, self.intervention, self.grpo, max_new=max_new, step=step
        )
        with self.meter.edit(stats.teacher_gradient):
            self.intervention.edit_gradients(self.adapter)
        return stats

    def optimize(self, step: int) -> None:
        gradient_norms(self.adapter)
        self.optimizer.clip()
        lr = self.optimizer.config.lr
        updates = self.meter.update(self.intervention.edit_update(self.optimizer.propose(lr)))
        self.adapter.apply(updates, decay=lr * self.optimizer.config.weight_decay)
        self.intervention.after_step(step)
        self.sampler.sync(self.adapter)


def live_direction(policy: Policy, work: Work) -> tuple[LiveDirection, float]:
    """A frozen direction of the 24 core pairs, and the CPU seconds (GPU: wall) that one extraction of v_hack took."""
    config = ExtractionConfig(refresh_every=0)
    sides = encode(load_pairs("core"), work.tokenizer)
    extractor = Extractor(policy, sides, Source(), config, work.settings.max_new)
    clock = time.process_time if policy.device.type == "cpu" else time.perf_counter
    start = clock()
    first = extractor.extract(everything=False)
    return LiveDirection(extractor, first), clock() - start


class PlainFloor:
    """The plain loop of bench_floor.py on the same work."""

    def __init__(self, work: Work, *, shared_prefix: bool):
        self.work = work
        # The package's init, so that both systems hold the same adapter.
        inits = [t.init for _, t in attach(copy.deepcopy(work.model), AdapterConfig(rank=RANK)).trainables()]
        pairs = list(zip(inits[::2], inits[1::2], strict=True))
        self.floor = Floor(copy.deepcopy(work.model), pairs, work.settings, shared_prefix=shared_prefix)
        ids = [render_prompt(work.tokenizer, p.messages) for p in work.prompts]
        self.prompts = torch.tensor(ids, device=work.model.device)
        self.completions = self.prompts[:0]

    def generate(self, step: int) -> None:
        # The clone is an ordinary tensor, which autograd may keep; what inference mode returned is not.
        self.completions = self.floor.generate(self.prompts).clone()

    def train(self, step: int) -> None:
        self.floor.update(self.prompts, self.completions, self.work.rewards(step).to(self.prompts.device))

    def optimize(self, step: int) -> None:
        self.floor.optimize()


def make_systems(work: Work, names: Sequence[str]) -> dict[str, System]:
    """The systems by name, each with a model of its own."""
    return {
        name: PlainFloor(work, shared_prefix=name == "floor_prefix") if name in FLOORS else Ours(work, name)
        for name in names
    }
