"""Directions: contrastive pairs, what is extracted from them, and how good it is before anything is trained on it."""
