"""Claims: what a paper says a study will show, checked against what the study measured.

::

    study.yaml (claims:)  ──┐
    results/*.parquet     ──┴─check_claims─>  [ClaimResult]  ─>  print_claims, write_claims, exit_code

A verdict comes from the whole confidence interval: ``holds`` where all of it agrees with the claim, ``does not hold``
where none of it does, ``undecided`` otherwise. SciPy is imported on the first check, not by reading a study file.
"""
