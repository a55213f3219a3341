"""Compiled kernels: the two measurements that are slow in NumPy, in machine code."""
