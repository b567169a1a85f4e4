"""Dreamer 4 in JAX and Flax: agents that learn inside a world model."""

__version__ = '0.1.0'
