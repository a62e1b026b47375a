"""Recipes: optimiser, parameter groups and learning rate of a paper, chosen by class path."""

from peas.recipes.audiomae import AudioMAEPretrainingRecipe, AudioMAERecipe
from peas.recipes.base import Recipe, RunLength
from peas.recipes.ssast import SSASTPretrainingRecipe, SSASTRecipe

__all__ = [
    "AudioMAEPretrainingRecipe",
    "AudioMAERecipe",
    "Recipe",
    "RunLength",
    "SSASTPretrainingRecipe",
    "SSASTRecipe",
]
