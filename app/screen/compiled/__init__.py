"""Compiled kernels: machine code, through numba, for the measurements that are slow in NumPy or torch."""
