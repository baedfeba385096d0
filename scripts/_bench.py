"""The systems of the step benchmark that need no more than the package: its interventions, and the plain floor.

Each steps through the same work (_bench_work.py) and keeps account of its phases (_bench_phases.py). TRL is in
_bench_trl.py.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

import vgrout.update as passes
from _bench_phases import PAIRS, Phases, clock
from _bench_work import RANK, Work
from bench_floor import Floor, Init
from vgrout.adapter import AdapterConfig, attach
from vgrout.directions.config import ExtractionConfig
from vgrout.directions.direction import ALL_PARTS, Extractor, Part
from vgrout.directions.gradient import encode
from vgrout.directions.live import LiveDirection
from vgrout.directions.meter import Meter
from vgrout.directions.pairs import load_pairs
from vgrout.directions.placebo import Source
from vgrout.grpo import GrpoConfig
from vgrout.interventions import INTERVENTIONS, intervention_class
from vgrout.measure import gradient_norms, update_share
from vgrout.models import render_prompt
from vgrout.observe import observe
from vgrout.optim import OptimConfig, Optimizer
from vgrout.policy import Policy
from vgrout.rollout.base import GroupPlan, GroupSampler, SamplingParams
from vgrout.rollout.hf import HFSampler
from vgrout.types import Group, Seen
from vgrout.update import UpdateStats, update
from vgrout.update.one_pass import OnePass

FLOORS = ("floor", "floor_prefix")
FORMS: dict[str, dict[str, object]] = {
    "routeV:two-pass": {"feature": "raw", "clean": "zeroed", "mask": "activation"},
    "routeV:nll": {"feature": "nll"},
    "routeV:live": {"edges": "live"},
    "moe:published": {"soft": "published"},
}
"""Forms of an intervention that run rows again, by name and settings. routeV:live routes a share of the rows of any model, so
that the block baseline changes advantages and those rows are run again; with a random model plain routeV may route none."""
OWN = (*INTERVENTIONS, *FORMS, "none@delta_s", "erase@delta_s", "routeV@delta_s")
"""Interventions are on lora2r where no adapter is named behind an @, with their default settings where no form is behind a
colon."""


class System:
    """One step is the three phases in turn; what `generate` sampled is kept until `train` has used it."""

    def __init__(self, work: Work):
        self.work = work
        self.phases = Phases(lambda: clock(work.model.device))
        self.extraction_s: float | None = None
        """Seconds that one renewal of the direction takes; None: this system renews nothing."""

    def step(self, step: int) -> None:
        """One training step; the seconds of its phases are added to `phases`."""
        with self.phases.phase("generate"):
            self.generate(step)
        with self.phases.phase("fwd+bwd"):
            self.train(step)
        with self.phases.phase("optimize"):
            self.optimize(step)

    def generate(self, step: int) -> None:
        raise NotImplementedError

    def train(self, step: int) -> object:
        raise NotImplementedError

    def optimize(self, step: int) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class _Timed(Extractor):
    """An extractor that adds the time of passes over the pairs to its system's account."""

    system: Ours

    def activations(self, *, blind: bool = True) -> dict[str, Tensor]:
        with self.system.phases.phase(PAIRS):
            return super().activations(blind=blind)


class Ours(System):
    """The package as its training loop runs it, without the grader."""

    def __init__(self, work: Work, intervention: str, *, temperature: float = 1.0):
        super().__init__(work)
        s = work.settings
        model = copy.deepcopy(work.model)
        name, _, kind = intervention.partition("@")
        settings = FORMS.get(intervention, {})
        name = name.partition(":")[0]
        self.adapter = attach(model, AdapterConfig(kind="delta_s" if kind == "delta_s" else "lora2r", rank=RANK))
        self.policy = Policy(model, self.adapter, temperature=1.0, chunk=s.chunk)
        chosen = intervention_class(name)
        self.intervention = chosen(chosen.Settings(**settings), self.adapter, 0)
        direction = None
        measured = chosen.measures_direction or "hack" in chosen.renews
        if chosen.needs_direction or measured:
            hack: frozenset[Part] = frozenset({"hack"}) if measured else frozenset()
            renews = chosen.renews or hack
            direction, self.extraction_s = self.live_direction(work, renews)
        self.intervention.prepare(direction)
        self.meter = Meter(self.adapter, direction if measured else None)
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
        self.phases.watch(self.policy, "logps", "reference", without_gradient=True)
        self.phases.watch(self.intervention, "shape_rewards", "gate")
        self.phases.watch(self.intervention, "route", "gate")

    def live_direction(self, work: Work, renews: frozenset[Part]) -> tuple[LiveDirection, float | None]:
        """A frozen direction of the 24 core pairs, and the seconds that extracting the renewed parts took."""
        config = ExtractionConfig(refresh_every=0)
        sides = encode(load_pairs("core"), work.tokenizer)
        extractor = _Timed(self.policy, sides, Source(), config, work.settings.max_new, self)
        reads: frozenset[Part] = frozenset({"act"}) if self.intervention.needs == "activations" else frozenset()
        parts = renews | reads or ALL_PARTS
        key = type(self.adapter), parts
        if key not in work.directions:
            start = clock(self.policy.device)
            work.directions[key] = extractor.extract(parts), clock(self.policy.device) - start
        first, seconds = work.directions[key]
        return LiveDirection(extractor, first, renews), seconds if renews else None

    def generate(self, step: int) -> None:
        self.groups = self.sampler.sample(self.work.prompts, step)

    def seen(self, step: int) -> Seen:
        rewards = tuple(tuple(row) for row in self.work.rewards(step).tolist())
        keep = tuple((True,) * len(row) for row in rewards)
        labels = tuple(tuple(row) for row in self.work.labels(step).tolist()) if self.intervention.oracle else None
        return Seen(rewards, keep, labels)

    def train(self, step: int) -> None:
        stats = self.backward(step)
        with self.phases.phase("optimize"), self.meter.edit(stats.teacher_gradient):
            self.intervention.edit_gradients(self.adapter)

    def backward(self, step: int) -> UpdateStats:
        """The routed gradient, before the intervention edits it."""
        seen, phases = self.seen(step), self.phases
        with phases.phase("gate"):
            features = observe(self.policy, self.groups, self.intervention.needs, token_budget=self.grpo.token_budget)
        rewards, keep = self.intervention.shape_rewards(seen, features, step)
        with ExitStack() as stack:
            # The gate's part of the update: a backward of its own, or what it reads of the one that it routes.
            for owner, name in ((passes, "own_gradients"), (OnePass, "_route"), (OnePass, "_split_tokens")):
                stack.enter_context(phases.watching(owner, name, "gate"))
            return update(
                self.policy,
                self.groups,
                seen,
                rewards,
                keep,
                self.intervention,
                self.grpo,
                max_new=self.work.settings.max_new,
                step=step,
                features=features,
            )

    def optimize(self, step: int) -> None:
        gradient_norms(self.adapter)
        self.optimizer.clip()
        lr = self.optimizer.config.lr
        updates = self.meter.update(self.intervention.edit_update(self.optimizer.propose(lr)))
        update_share(self.adapter, updates)
        self.adapter.apply(updates, decay=lr * self.optimizer.config.weight_decay)
        self.intervention.after_step(step)
        self.sampler.sync(self.adapter)


class PlainFloor(System):
    """The plain loop of bench_floor.py on the same work."""

    def __init__(self, work: Work, *, shared_prefix: bool = False, inits: list[Init] | None = None):
        """`inits`: A0 and B0 of each linear; without them the package's, so that both systems hold the same adapter."""
        super().__init__(work)
        model, inits = copy.deepcopy(work.model), adapter_init(work) if inits is None else inits
        self.floor = Floor(model, inits, work.settings, shared_prefix=shared_prefix)
        ids = [render_prompt(work.tokenizer, p.messages) for p in work.prompts]
        self.prompts = torch.tensor(ids, device=work.model.device)
        self.completions = self.prompts[:0]
        self.phases.watch(self.floor, "logps", "reference", without_gradient=True)

    def generate(self, step: int) -> None:
        # The clone is an ordinary tensor, which autograd may keep; what inference mode returned is not.
        self.completions = self.floor.generate(self.prompts).clone()

    def train(self, step: int) -> float:
        """Returns the loss."""
        return self.floor.update(self.prompts, self.completions, self.work.rewards(step).to(self.prompts.device))

    def optimize(self, step: int) -> None:
        self.floor.optimize()


def adapter_init(work: Work) -> list[Init]:
    """A0 and B0 of every projection as the package draws them for this model."""
    trainables = attach(copy.deepcopy(work.model), AdapterConfig(rank=RANK)).trainables()
    factors = [t.init for _, t in trainables]
    return list(zip(factors[::2], factors[1::2], strict=True))
