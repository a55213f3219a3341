"""evaluate: behaviour of a candidate adapter on the operator's canaries, and the strength of correction it needs.

battery   canaries, read strictly from a file
judges    one answer → refused, complied or broken
ladder    results so far → the next question, the rung to serve, or rejection

Pure but for reading files. No upload passes through here yet: `python -m app canaries` is the only caller.
"""
