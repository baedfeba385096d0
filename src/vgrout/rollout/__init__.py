"""Where rollouts come from: the policy's own decode loop, a pool of stored answers, and the groups made of both."""

from vgrout.rollout.base import GroupPlan, GroupSampler, Request, Sampler, SamplingParams, round_half_up, seed_from
from vgrout.rollout.decode import Completion, decode
from vgrout.rollout.hf import HFSampler, Mergeable, NoAdapter
from vgrout.rollout.pool import PoolSampler

__all__ = [
    "Completion",
    "GroupPlan",
    "GroupSampler",
    "HFSampler",
    "Mergeable",
    "NoAdapter",
    "PoolSampler",
    "Request",
    "Sampler",
    "SamplingParams",
    "decode",
    "round_half_up",
    "seed_from",
]
