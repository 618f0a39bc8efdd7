"""Where stages and results live: a folder, or an object store (``s3://…``) with a folder here that mirrors it.

``location`` tells the two apart; ``connection`` and ``objects`` are all that speaks to an object store; ``local`` and
``remote`` keep stages in a folder and on an object store; ``lease`` lets one machine at a time compute a step; ``uses``
writes down which study asked for which stage; ``mirror`` carries a study's results to the object store and back.
:mod:`fortifai_ray.storage.store` is what the rest of the package speaks to.
"""
