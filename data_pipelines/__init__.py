"""Everything that makes a dataset on disk."""

from dreamer4_jax.iterator_state import hush_grain

hush_grain()
