"""`python -m app bench safety --canaries`: the gateway with canaries against ordinary fine-tunes and adversaries.

    plan (adapters, seeds, floors, rungs) → adversaries (their training data) → measuring (every correction by the product's
    own `sanitise`, asked the canaries and the examination) → rows → ladder (the product's own search) → choice on the
    tuning seeds → tables and a figure on the others

Rows say how an adapter behaves after each correction. Batteries, floors and rungs are then compared without a model.
"""
