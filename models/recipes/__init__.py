"""Recipes, one folder a model; read by :mod:`graphkit.recipes`."""
