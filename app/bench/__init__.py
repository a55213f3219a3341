"""Benchmarks a user can run: python -m app bench …

released    the released SPLoRA algorithm and Safe LoRA's dense cosine, written anew as baselines
synthetic   a reference of real size without real checkpoints
machine     what this machine is, and how fast it reads
screening   the screening benchmark
report      its tables and JSON
gateway…    what this gateway adds to an engine's answers, beside other relays: _standin (the engine), _load (the clients),
            _targets (what is measured), _processes (what they use), _report
capacity…   how many adapters, engines and cores, on paper; _report
costs       what one operation costs, measured, for that
command     the command line
"""
