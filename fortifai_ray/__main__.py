"""``python -m fortifai_ray`` is ``fortifai``."""

from fortifai_ray.cli import main

main()
