"""What determines a chain: its recipe, the regimes and curation, and what a family is."""
