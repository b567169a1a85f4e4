"""The process and its machine: devices, other processes, signals, memory, log.

JAX is imported only where it is needed: commands import this for `--help` too.
"""
