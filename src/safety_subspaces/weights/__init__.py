"""Checkpoints as named tensors: their updates, subspaces and snapshots on disk, read and written one at a time."""
