"""Reading and checking what a user wrote: YAML as people write it, and one line for each mistake.

``documents`` reads files, ``sections`` checks their content, ``keys`` says what an unknown key should have been, and
``synonyms`` holds the names that other tools give to our keys.
"""

from fortifai_ray.validation.documents import dump_yaml, parse_yaml, read_yaml
from fortifai_ray.validation.keys import all_keys, at, hint, leaves, put, unknown_key
from fortifai_ray.validation.sections import Section, a_name, first_mistake, mistake, shown, validated

__all__ = [
    "Section",
    "a_name",
    "all_keys",
    "at",
    "dump_yaml",
    "first_mistake",
    "hint",
    "leaves",
    "mistake",
    "parse_yaml",
    "put",
    "read_yaml",
    "shown",
    "unknown_key",
    "validated",
]
