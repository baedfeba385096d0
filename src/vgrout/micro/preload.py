"""Imported by the process that runs are forked from, so that each of them finds the problems of the micro world made."""

from __future__ import annotations

from typing import get_args

from vgrout.micro.problems import Split, micro_problems

for split in get_args(Split):
    micro_problems(split)
