"""Causal language models, trained from scratch or from a checkpoint; warm engines generate their corpora."""
