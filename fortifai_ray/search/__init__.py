"""Finding where collapse begins with a fraction of a grid's chains, and with what certainty: the mathematics alone.

It knows neither Ray nor chains. :mod:`~fortifai_ray.search.boundary` searches by ask and tell; its settings are in
:mod:`fortifai_ray.study.search`, and :mod:`fortifai_ray.sweep.search` runs the chains that it asks for.
"""
