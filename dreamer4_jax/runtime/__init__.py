"""The process and its machine: devices, other processes, signals, memory, log.

JAX is imported where it is needed only: commands read this for `--help` too.
"""
