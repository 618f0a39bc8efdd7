"""Files in a working folder that have the names of libraries, and break whoever imports them."""

from pathlib import Path

# `python -m` itself imports these before it looks for the program: with it no program can mend them; `fortifai` does.
BEFORE_THE_PROGRAM = {"collections", "contextlib", "functools", "importlib", "keyword", "operator", "reprlib", "runpy"}
BEFORE_THE_PROGRAM |= {"types", "warnings"}
LIBRARIES = """
abc argparse ast calendar cmd code codecs copy csv dataclasses datetime email enum glob http inspect io json logging
multiprocessing numbers os pickle platform queue random re secrets select signal site socket stat statistics string
struct subprocess tempfile test threading time token tokenize traceback typing uuid xml
altair datasets jinja2 mlflow numpy pandas peft polars psutil pyarrow pydantic ray rich safetensors scipy sklearn
tenacity tokenizers torch tqdm transformers typer vllm yaml
"""


def set_traps(folder: Path) -> Path:
    """A working folder with a file or a folder of the name of each library."""
    for number, name in enumerate(sorted({*LIBRARIES.split(), *BEFORE_THE_PROGRAM})):
        trap = folder / f"{name}.py" if number % 3 else folder / name / "__init__.py"
        trap.parent.mkdir(exist_ok=True)
        trap.write_text(f"raise RuntimeError('the {name} of the working folder was imported')\n")
    return folder
