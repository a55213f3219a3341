"""The life of one adapter, and where to read about each step.

    upload    strangers' bytes → one sealed, digested file each           app/upload/
    validate  sealed files → an Adapter, or the rule they broke           app/validate/
    screen    Adapter + pinned reference → a Verdict, module by module    app/screen/
    prune     Adapter + Verdict → canonical bytes without what it cut     app/prune/
    store     those bytes for ever under their digest; names in SQL       app/store/
    load      the engine holds what the catalogue says                    app/load/
    serve     one request → the version it named → its answer             app/serve/

`pipeline.py` is the only module that knows this order, `lifecycle.py` the states a version passes through, `domain/` the
words, `errors.py` every refusal, `main.py` the wiring.
"""

__version__ = "0.1.0"
