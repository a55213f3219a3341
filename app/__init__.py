"""LoRA gateway: map of the rooms, from the top floor down. Each may import those below it (pyproject.toml, "Floors").

    cli          python -m app …, one file a command
    bench, demo  guests: benchmarks, and a made-up model with adapters; only the command line calls them
    server       settings → wired components → one FastAPI application
    console      pages for a browser
    api          HTTP routes and who may use them
    gateway      use cases, one file each: uploads, publishing, desired state, garbage, warm-up, …
    sandbox      process in which strangers' tensors are read
    serve        one inference request → the version it named → its answer; the routing table
    evaluate     canaries: behaviour of a candidate, and the correction it needs

One adapter's way, left to right; none of these rooms knows another:

    upload → validate → screen → prune → store → load

    upload       strangers' bytes → one sealed, digested file each
    fetch        a source's name → its bytes at one commit, for upload to seal
    validate     sealed files → an Adapter, or the rule they broke
    screen       Adapter + pinned reference → a Verdict, module by module
    prune        Adapter + Verdict → canonical bytes without what it cut
    store        those bytes for ever under their digest; names in SQL
    load         the engine's client, and the reconciler that keeps the engine equal to the catalogue

    access       tokens of OpenID Connect issuers → callers

    observe      metrics, logs, traces
    domain       frozen values and every error, no I/O
    concurrency  bounded thread pools
"""

__version__ = "0.1.0"
