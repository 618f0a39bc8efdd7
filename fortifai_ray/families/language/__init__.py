"""Causal language models: Ray Train fits them, vLLM engines behind Ray Data let them write."""
