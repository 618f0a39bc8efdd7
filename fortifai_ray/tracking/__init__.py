"""MLflow's copy of a study's folder: kept complete while a sweep runs (``sync``), and read back (``download``).

The folder is the truth. Runs are identified by their tags, so a sweep that was killed or is repeated continues in the
runs it has, and nothing is logged twice. Nothing is imported here: ``address`` serves commands that need no tables.
"""
