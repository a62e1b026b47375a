"""Augmentation as pure functions of tensors; every random decision comes from given draws."""
