"""Evaluation: continuations of held-out pairs, by models and baselines, measured and reported."""
