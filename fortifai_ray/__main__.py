"""The program: ``fortifai``, also as ``python -m fortifai_ray``."""

from fortifai_ray.process.search_path import libraries_first

libraries_first()  # before any other import

import atexit  # noqa: E402
import gc  # noqa: E402

from fortifai_ray.process.signals import answering_signals  # noqa: E402


def main() -> None:
    """Entry point; see :func:`fortifai_ray.cli.main`."""
    atexit.register(gc.freeze)  # else Python looks for garbage among all objects as it ends: 1 s of CPU after a sweep
    with answering_signals():
        from fortifai_ray.cli import main as command_line

        command_line()


if __name__ == "__main__":
    main()
