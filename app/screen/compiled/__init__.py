"""Compiled Jacobi rotations: machine code, through numba, for the one loop that NumPy runs several times slower."""
