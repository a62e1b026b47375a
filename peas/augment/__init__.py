"""Augmentation as pure functions of tensors; random numbers are arguments."""
