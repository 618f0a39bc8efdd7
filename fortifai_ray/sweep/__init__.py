"""A sweep: every chain of a study on Ray Tune, and what is recorded of it."""
