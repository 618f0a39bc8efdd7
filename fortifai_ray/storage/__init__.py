"""Where stages and results live: a folder, or an object store (``s3://…``) with a local folder that mirrors it.

:mod:`fortifai_ray.storage.store` is the interface to the rest of the package: stages, and who uses them. ``location``
distinguishes the two kinds of storage; ``objects`` alone talks to an object store; ``local`` and ``remote`` keep stages
in a folder and on an object store; ``lease`` lets one machine at a time compute a step; ``mirror`` copies a study's
results to the object store and back; ``gc`` removes what no study needs.
"""
