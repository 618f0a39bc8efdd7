"""Run histories that were made elsewhere: read from files and trackers, checked, and judged as a sweep's chains are."""
