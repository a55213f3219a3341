"""Screening: Adapter + pinned reference → Verdict. Pure mathematics; also builds and opens references.

screen             the whole measurement of an adapter
decide             scores + policy → decisions
distances          the three distances and their scores (E-DIEM)
null_quartiles     quartiles of a random update's distances
quadratic_form     exact quartiles of ratios of quadratic forms in Gaussians
lora_svd           ΔW = B·A as its thin singular value decomposition
balance            the factors of an update that are measured and served
engine_arithmetic  the engine's rounding of those factors
served             comparison of the engine's checkpoint with the reference's
sides              signs that base and aligned checkpoints were swapped
matmul             V·X and Vᵀ·Y, block by block
bits               magnitudes of floating-point numbers as integers
exact              products of float64 matrices, bit-identical on any machine
core_svd           singular values and vectors of small matrices, bit-identical on any machine
threads            parallelism over modules, never inside a product
reference/         building a reference from two checkpoints; opening, verifying and holding it
compiled/          core_svd's rotations as a numba kernel; NumPy code is the fallback
"""
