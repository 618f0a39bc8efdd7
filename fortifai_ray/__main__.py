"""The program: ``fortifai``, also as ``python -m fortifai_ray``."""

from fortifai_ray.process.search_path import libraries_first

libraries_first()  # before the imports of the command line

from fortifai_ray.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
