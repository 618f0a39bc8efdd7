"""The charts that the report and the notebooks share."""
