"""`python -m app bench safety --size smollm2`: the same question on a language model that people use, and on real text.

    packages (weights and prompts that others published) → prompts, skills → models (aligned, fine-tuned: cached)
    → methods → examination (answers, judged by keywords) → rows → report

Harmful prompts and answers exist at run time only: in memory, and in the cache outside the repository. Rows are numbers.
"""
