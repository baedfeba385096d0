"""One pass in which the gate reads the very backward that it routes.

Every rollout's (or token's) own gradient is kept until the gate has read it in the routing coordinates; then the blocks'
shares are added up. The `block` baseline changes the advantages of the rows that the deployed block learns from by one number
per group, which is known only when the whole group has been routed. Two ways lead there, both exact at ratio 1:

    beta = 0   the backward is of `-sum_t w_t log p_t`, so row i's loss gradient is A_i times what is kept. Those rows'
               shares are put aside per group and added with the group's number at the end: nothing is run twice.
    beta > 0   the backward is of the whole loss, whose KL term must not be scaled. Those rows are run again with the
               number as their advantage and without the KL, in groups in which it is not 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgrout.adapter.gradients import BlockSums, PerRollout, PerToken, Sums
from vgrout.adapter.route import as_sampled
from vgrout.directions.tokens import token_cosine
from vgrout.grpo import ZERO_SPREAD, advantage
from vgrout.interventions.base import Intervention, Rows
from vgrout.policy import Batch
from vgrout.types import Source
from vgrout.update.loss import StepLoss

Recorder = PerRollout | PerToken


@dataclass(frozen=True)
class Parts:
    """What one batch's backward has left, and the factor that makes each row's share of it the gradient of its loss."""

    kept: Recorder
    factor: Float[Tensor, " n"]

    def features(self) -> dict[str, Float[Tensor, "n d"]]:
        """Per module, each rollout's loss gradient in the routing coordinates of the deployed block."""
        assert isinstance(self.kept, PerRollout)
        sizes = {name: module.probe_size for name, (module, _) in self.kept.kept.items()}
        probes = self.kept.c_probe()
        return {name: (self.factor[:, None].to(g) * g[:, : sizes[name]]).cpu() for name, g in probes.items()}

    def cosines(self, directions: Mapping[str, Float[Tensor, " d"]]) -> dict[str, Float[Tensor, "R L"]]:
        """Implements `TokenGradients`."""
        assert isinstance(self.kept, PerToken)
        factor = self.factor[:, None, None]
        probes = ((name, module.token_probe(factors)) for name, (module, factors) in self.kept.kept.items())
        return {name: token_cosine(factor.to(g) * g, directions[name]).cpu() for name, g in probes}

    def add(self, weights: Tensor, per_row: Float[Tensor, " n"], into: Sums | None = None) -> None:
        """Rows times `per_row`, weighed per rollout or per token and block, to `.grad` or to the sums."""
        shape = (-1, *[1] * (weights.ndim - 1))
        self.kept.add(weights.double() * per_row.to(weights.device).double().view(shape), into)


@dataclass
class OnePass:
    """Routes the rows of one step while they are backpropagated."""

    loss: StepLoss
    intervention: Intervention
    rows: Rows
    """Of the whole step, without features; its advantages are those against the group's mean."""
    group_size: int
    block_baseline: bool

    def __post_init__(self) -> None:
        # A row that is not forwarded teaches nothing; it counts as the gate counts what it cannot tell: mid.
        self.weights = torch.stack([torch.ones(self.rows.n), as_sampled(self.rows.views)], dim=1)
        self.score = torch.full((self.rows.n,), float("nan"), dtype=torch.float64)
        self.aside: dict[tuple[int, Source], tuple[int, Sums]] = {}
        """By group and source: one row of those that the deployed block learns from, and the sums over all of them."""
        self.row_unit, self.row_kl = torch.zeros(2, self.rows.n, dtype=torch.float64)
        """Of each row's loss: the policy term at advantage 1, and the KL term."""
        self.by_row: dict[int, Float[Tensor, "L 2"]] = {}
        """Where tokens are routed: the weights of each row's tokens."""

    def run(self, live: Sequence[int]) -> None:
        """Adds the routed gradient of these rows at the group's advantages to `.grad`."""
        policy, loss = self.loss.policy, self.loss
        for batch in loss.batches(live):
            recorder: Recorder = PerToken() if self.by_token else PerRollout(batch.index)
            A = self.rows.advantages[list(batch.rows)]
            ones = torch.ones_like(A)
            with policy.adapter.view(batch.view), policy.adapter.recording(recorder):
                new = policy.logps(batch)
                total = loss.policy_term(batch, new, ones if self.scales else A)
                if not self.scales:
                    kl = loss.kl_terms(batch, new)
                    self._note(self.row_kl, batch, kl.detach())
                    total = total + kl.sum()
                total.backward()
            loss.stats.note_logps(batch, loss.rollouts, new.detach())
            self._note(self.row_unit, batch, -loss.weights(batch))
            parts = Parts(recorder, A if self.scales else ones)
            weights = self._split_tokens(batch, parts) if self.by_token else self._route(batch, parts)
            parts.add(weights, parts.factor)
            if self.block_baseline and self.scales:
                self._put_aside(batch, parts, weights)

    @property
    def by_token(self) -> bool:
        return self.intervention.needs == "token_gradients"

    @property
    def scales(self) -> bool:
        """Whether a row's loss gradient is proportional to its advantage."""
        return self.loss.config.beta == 0

    def finish(
        self, rewards: Float[Tensor, "P G"], keep: Bool[Tensor, "P G"], live: Sequence[int]
    ) -> Float[Tensor, " N"]:
        """The final advantages; what they change is added to `.grad`, and of teacher rows to the part that is kept of them."""
        A = self.rows.advantages
        if self.block_baseline:
            shares = self.weights[:, 0].view_as(rewards)
            A = advantage(rewards, keep, deployed=shares, std_norm=self.loss.config.std_norm).flatten()
            change = A - self.rows.advantages
            for source in ("teacher", "student"):
                teacher = self.loss.stats.teacher_gradient if source == "teacher" else None
                before = None if teacher is None else [g.clone() for g in self.loss.policy.adapter.gradients()]
                self._add_aside(source, change)
                if not self.scales:
                    of_source = [i for i in live if self.loss.rollouts[i].source == source]
                    moved = [i for i in of_source if abs(float(change[i])) > ZERO_SPREAD]
                    self._again(moved, change)
                if teacher is not None and before is not None:
                    for kept, now, was in zip(teacher, self.loss.policy.adapter.gradients(), before, strict=True):
                        kept.add_(now - was)
        taught = (self.weights > 0).any(dim=1)
        self.loss.stats.loss += float((A.double() * self.row_unit + self.row_kl)[taught].sum())
        return A

    def _add_aside(self, source: Source, change: Float[Tensor, " N"]) -> None:
        for (_, of), (at, sums) in self.aside.items():
            if of == source:
                sums.flush(float(change[at]))

    def _again(self, rows: Sequence[int], change: Float[Tensor, " N"]) -> None:
        """Runs rows again with the change of their advantages, under the route that they have been given."""
        policy = self.loss.policy
        for batch in self.loss.batches(rows):
            at = list(batch.rows)
            weights = self._token_weights(batch) if self.by_token else self.weights[at]
            recorder = PerToken() if self.by_token else BlockSums(batch.index, weights)
            with policy.adapter.view(batch.view), policy.adapter.recording(recorder):
                self.loss.policy_term(batch, policy.logps(batch), change[at]).backward()
            if isinstance(recorder, PerToken):
                recorder.add(weights)

    def _token_weights(self, batch: Batch) -> Float[Tensor, "R L 2"]:
        """The weights that the tokens of these rows were given, padded to this batch's width."""
        own = [self.by_row[i] for i in batch.rows]
        return torch.nn.utils.rnn.pad_sequence(own, batch_first=True).to(batch.tokens.device)

    def _route(self, batch: Batch, parts: Parts) -> Float[Tensor, "n 2"]:
        rows = self._of(batch, parts.features())
        route = self.intervention.route(rows)
        if route.needs_forward:
            raise ValueError("a route that is read from the training backward cannot ask for another forward")
        weights = route.block_weights(rows.views)
        self.weights[list(batch.rows)] = weights.to(self.weights)
        if route.score is not None:
            self.score[list(batch.rows)] = route.score.to(self.score)
        return weights

    def _split_tokens(self, batch: Batch, parts: Parts) -> Float[Tensor, "R L 2"]:
        own = (batch.index.rollout >= 0).cpu()
        share = self.intervention.split_tokens(self._of(batch, {}), parts) * own
        acts = float(batch.view == "full")
        weights = torch.stack([(1 - share) * own, share * acts], dim=-1)
        at, tokens = list(batch.rows), own.sum(1, keepdim=True)
        self.weights[at] = (weights.sum(1) / tokens).to(self.weights)
        self.score[at] = (share.sum(1) / tokens[:, 0]).to(self.score)
        for i, row, mine in zip(at, weights, own, strict=True):
            self.by_row[i] = row[mine]
        return weights.to(batch.tokens.device)

    def _of(self, batch: Batch, features: Mapping[str, Tensor]) -> Rows:
        at = list(batch.rows)
        labels = None if self.rows.labels is None else self.rows.labels[at]
        return replace(
            self.rows,
            advantages=self.rows.advantages[at],
            views=tuple(self.rows.views[i] for i in at),
            labels=labels,
            features=features,
            at=batch.rows,
        )

    def _put_aside(self, batch: Batch, parts: Parts, weights: Tensor) -> None:
        """The rows that the deployed block learns from, at advantage 1, group by group."""
        learns = self.weights[list(batch.rows), 0] > 0
        keys = [(i // self.group_size, self.loss.rollouts[i].source) for i in batch.rows]
        for key in dict.fromkeys(keys):
            chosen = torch.tensor([k == key for k in keys]) & learns
            if bool(chosen.any()):
                first = batch.rows[int(chosen.nonzero()[0])]
                _, sums = self.aside.setdefault(key, (first, Sums()))
                parts.add(weights, chosen.to(weights), sums)

    def _note(self, into: Float[Tensor, " N"], batch: Batch, per_token: Float[Tensor, " n"]) -> None:
        """The sum over each row's tokens."""
        rows = torch.zeros(len(batch.rows), dtype=torch.float64)
        into[list(batch.rows)] = rows.index_add_(0, batch.owner.cpu(), per_token.double().cpu())
