"""Checkpoints and corpora for everybody else: plain folders and hub repositories, each with a card of how it came."""
