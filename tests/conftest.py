"""Settings of the whole test suite; made before JAX starts its backend."""

import pathlib

import jax

NUM_DEVICES = 4
_CACHE = pathlib.Path(__file__).parents[1] / '.cache' / 'jax'

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', NUM_DEVICES)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(_CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
