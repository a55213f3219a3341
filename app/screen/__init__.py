"""Adapter + pinned reference → Verdict. Pure mathematics; also builds and opens references.

checkpoint   two checkpoints, read tensor by tensor
build        base + aligned → a reference directory
spectrum     what a reference keeps of V's singular values
manifest     reference.json: what a reference says about itself
reference    open one, prove it whole, hold it
products     V·X and Vᵀ·Y, block by block
kernels      the same compiled, at the speed of memory
threads      parallel over modules, never inside a product
exact        products of float64 matrices that are the same to the bit on any machine
core_svd     singular values and vectors of small matrices, likewise
rotations    its rotations, compiled
balance      the factors of an update that are measured and served
engine_arithmetic   what the engine would make of them
update       ΔW = B·A as its thin singular value decomposition
quadratic    exact quartiles of ratios of quadratic forms in Gaussians
imhof        the same compiled
nulls        quartiles of what a random update would measure
ediem        the three distances and their scores
compiling    how kernels are compiled, and what serves without
warm         compile ahead of the first screening
decide       scores + policy → decisions
screen       all of it, for one adapter or several
"""
