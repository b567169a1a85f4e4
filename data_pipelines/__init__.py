"""Everything that makes a dataset on disk."""

from dreamer4_jax.runtime.logs import hush_grain

hush_grain()
