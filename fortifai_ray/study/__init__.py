"""The study file and its parts, as data: what varies, the criterion of collapse, the search, claims and resources."""
