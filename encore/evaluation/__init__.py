"""Evaluation: continuations of validation pairs, by models and baselines, measured and reported."""
