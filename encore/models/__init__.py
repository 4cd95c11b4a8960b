"""The continuation model, its priors, and how continuations are sampled from it."""
