"""Adapter + pinned reference → Verdict. Pure mathematics; also builds and opens references.

checkpoint   two checkpoints, read tensor by tensor
build        base + aligned → a reference directory (spectrum: what it keeps of V's singular values)
manifest     reference.json: what a reference says about itself
reference    open one, prove it whole, hold it
products     V·X and Vᵀ·Y, block by block
quadratic    exact quantiles of ratios of quadratic forms in Gaussians
update       ΔW = B·A as its thin singular value decomposition
ediem        the three distances, their nulls, the scores
decide       scores + policy → decisions
screen       all of it for one adapter
"""
