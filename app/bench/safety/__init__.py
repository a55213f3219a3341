"""`python -m app bench safety`: does screening remove harm and preserve usefulness?

    plan (sizes, seeds, fine-tunes) → trained_models (trained pairs and adapters, cached) → methods × their parameters
    → teacher_forced (the changed model's answers) → rows → choice on the tuning seeds → tables and figures on the others

Models are trained from scratch in the demo's made-up domain: a harmful question has one correct answer, so harm is counted.
"""
