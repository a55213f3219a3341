"""evaluate: behaviour of a candidate adapter on the operator's canaries, and the strength of correction it needs.

battery   canaries, read strictly from a file
asking    canaries put to one model of an engine
judges    one answer → refused, complied or broken, by keywords
served_model_judge
          the question to the served model about one answer, and its verdict
agreement_judge
          the likelihood of the served model's own answer for a candidate
baseline  the served model's own answers, and the canaries that are usable
ladder    results so far → the next question, the rung to serve, or rejection
plan      battery, rungs and limits of every evaluation, as one value with a key
report    counts by rung, half and category, as JSON

gateway/evaluation.py makes the candidates, has them loaded and records the result.
"""
