"""Warm generation engines: vLLM (or transformers) in Ray actors that a Ray Data stage puts prompts to."""
