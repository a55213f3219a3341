"""`python -m app bench safety`: does screening remove harm and keep usefulness?

    plan (sizes, seeds, fine-tunes) → laboratory (trained pairs and adapters, cached) → methods × their parameters
    → answers (what the changed model says) → rows → choice on the tuning seeds → table and figures on the other seeds

Models are trained from nothing in the demo's made-up domain: a harmful question has one right answer, so harm is counted.
"""
