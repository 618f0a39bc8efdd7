"""Puts this folder on the path: `executors` is imported by the tests of several families."""
