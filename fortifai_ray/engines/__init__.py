"""Warm generation engines: vLLM (or transformers), in this process or in Ray actors that outlive each corpus."""
