"""This process among others: where it looks for modules, the signals it gets, the temporary folders it may use."""
