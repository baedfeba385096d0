"""The one door between what knows the truth and what trains.

A step's verdicts are held by logging and evaluation only. `visible_to` lets the rewards and the infrastructure mask
through, and ground-truth labels only for the interventions listed here, and only where the user allowed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vgrout.types import Group, Seen, UserError, Verdict

ORACLE_READERS = frozenset(
    {
        "vgrout.interventions.label_route.LabelRoute",
        "vgrout.interventions.monitor.Penalty",
        "vgrout.interventions.monitor.Screening",
    }
)
"""Upper bounds that may see labels, by module and class name; nothing outside the package can be among them."""


class Verdicts:
    """The verdicts of a step's groups, by rollout id."""

    def __init__(self, groups: Sequence[Group], by_id: Mapping[str, Verdict]):
        self.groups = tuple(groups)
        self.by_id = dict(by_id)
        wanted = {r.id for group in self.groups for r in group.rollouts}
        if wanted != self.by_id.keys():
            raise ValueError(
                f"verdicts are for other rollouts than the groups': {sorted(wanted ^ self.by_id.keys())[:5]}"
            )

    @property
    def student_hack(self) -> bool:
        """Whether a hack of the policy's own, not one of the teacher pool's, was paid."""
        return any(self.by_id[r.id].exploited for g in self.groups for r in g.rollouts if r.source == "student")

    def visible_to(self, intervention: object, *, allow_oracle: bool) -> Seen:
        """Rewards and mask; labels too for a listed upper bound under `allow_oracle`."""
        kind = f"{type(intervention).__module__}.{type(intervention).__qualname__}"
        labels = loose = None
        if kind in ORACLE_READERS:
            if not allow_oracle:
                raise UserError(f"{kind} reads ground truth: allow it with --allow-oracle")
            labels = tuple(tuple(v.exploited for v in row) for row in self._rows())
            loose = tuple(tuple(v.hack_broad for v in row) for row in self._rows())
        return Seen(
            rewards=tuple(tuple(0.0 if v.infra else v.reward for v in row) for row in self._rows()),
            keep=tuple(tuple(not v.infra for v in row) for row in self._rows()),
            labels=labels,
            loose=loose,
        )

    def _rows(self) -> list[list[Verdict]]:
        return [[self.by_id[r.id] for r in group.rollouts] for group in self.groups]
