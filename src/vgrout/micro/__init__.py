"""The micro world: a problem family, a corpus and a small code model, so that hacking emerges on a laptop in minutes.

Its problems are ordinary rows for the environment, graded by the same sandbox under the same loophole modes. Hacks are
*seeded* by supervised training at a set share and *amplified* by reinforcement learning; nothing here shows that a model
discovers them.
"""
