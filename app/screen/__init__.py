"""Adapter + pinned reference → Verdict. Pure mathematics; also builds and opens references.

screen             the whole measurement, for one adapter or several
decide             scores + policy → decisions
distances          the three distances and their scores (E-DIEM)
null_quartiles     quartiles of a random update's distances
quadratic_form     exact quartiles of ratios of quadratic forms in Gaussians
lora_svd           ΔW = B·A as its thin singular value decomposition
balance            the factors of an update that are measured and served
engine_arithmetic  the engine's rounding of those factors
served             agreement of the reference with the engine's model
matmul             V·X and Vᵀ·Y, block by block
exact              products of float64 matrices that are the same to the bit on any machine
core_svd           singular values and vectors of small matrices, likewise
rotations          its rotations, compiled
threads            parallel over modules, never inside a product
reference/         build from two checkpoints, open, prove intact, hold
compiled/          machine code for quadratic_form and matmul, and its absence
"""
