"""Families of models: the only place that knows tensors from points."""
