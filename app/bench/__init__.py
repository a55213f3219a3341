"""Benchmarks a user can run: python -m app bench …

released    the released SPLoRA algorithm and Safe LoRA's dense cosine, written anew as baselines
synthetic   a reference of real size without real checkpoints
machine     what this machine is, and how fast it reads
screening   the screening benchmark
report      its tables and JSON
command     the command line
"""
