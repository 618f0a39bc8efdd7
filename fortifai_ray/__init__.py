"""Recursive-training studies on Ray: when a generative model collapses, what delays it, and by how much."""

__version__ = "0.1.0"
