"""Fidelity statistics: when a chain collapses, and how its fidelity interval compares with the baseline's.

Pure functions of tables, which know neither models, nor what ran them, nor where a table is stored::

    generations  --chain_table-->  chains  --fidelity_table-->  fidelity  --conclusions-->  sentences
         |                           +--onset_orders, first_crossings, crossing_order-->  what collapses first
         +--ratio_profile-->  the ratio as a function of the criterion's threshold
    collapse points  --critical_ratios-->  how much more synthetic data a loss tolerates

:func:`onset`, :func:`collapse_confirmed` and :func:`ruling` judge one chain, also while it still runs;
:func:`chain_table` judges all chains of a study at once; :func:`fidelity_table` summarises them per cell, and keeps
censored chains as the lower bounds that they are.
"""
