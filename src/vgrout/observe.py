"""What an intervention asks to see of a step's rollouts before their rewards are shaped: one pass without gradient."""

from __future__ import annotations

from collections.abc import Sequence

from vgrout.directions.activation import activations, last_hidden
from vgrout.interventions.base import Features, Needs
from vgrout.policy import Policy
from vgrout.types import Group


def observe(policy: Policy, groups: Sequence[Group], needs: Needs, *, token_budget: int) -> Features:
    """Features of every rollout of the step in the `deploy` view; none where they are read from a backward, or not at all."""
    rollouts = [r for group in groups for r in group.rollouts]
    if needs == "activations":
        return activations(policy, rollouts, "deploy", token_budget=token_budget)
    if needs == "hidden":
        return last_hidden(policy, rollouts, "deploy", token_budget=token_budget)
    return {}
