"""Holding an optimizer's update to a subspace, whole or in the pieces that a rank owns; knows no Lightning."""
