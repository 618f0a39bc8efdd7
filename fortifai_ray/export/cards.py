"""The cards of exported checkpoints and corpora: YAML for the hub, and how the thing came to be for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, Literal

from fortifai_ray.export.files import BASE, DATA, Written
from fortifai_ray.export.provenance import Line, Provenance, maker
from fortifai_ray.validation import dump_yaml

CARD = "README.md"
_TAGS = ["fortifai-ray", "model-collapse", "recursive-training"]
_SYNTHETIC = "synthetic"
_LORA = {
    "merged": "LoRA, merged into the starting model's weights",
    "adapter": "LoRA, in PEFT's form, of the starting model",
}
_LICENCE_UNKNOWN = (
    "No licence is given here, because none is known: those of the starting model and of the human data apply."
)


def model_card(of: Provenance, lora: Literal["merged", "adapter"] | None = None) -> str:
    """The card of a checkpoint; ``lora``: it is an adapter, or was one."""
    from huggingface_hub import ModelCardData

    language = of.row.get("family.kind") == "language"
    share = of.synthetic_share
    header = ModelCardData(
        library_name="peft" if lora == "adapter" else "transformers" if language else None,
        pipeline_tag="text-generation" if language else None,
        base_model=of.starting_model.get("hub"),
        license=of.licence,
        tags=[*_TAGS, *([_SYNTHETIC] if share else [])],
        datasets=_hub_corpus(of),
    )
    how = [*of.history, *([("Adapter", _LORA[lora])] if lora else [])]
    parts = [
        _front(header, of.title, _model_warning(of)),
        _section("How it came to be", _table(("", ""), how)),
        _section("Scores of this generation", _table(("metric", "value", "unit", "collapse"), of.scores)),
        _judgement(of),
        _section("Use", _use_of_adapter(of) if lora == "adapter" else _use_of_model(language, of)),
        _recipe(of),
        _section("Licence", of.licence or _LICENCE_UNKNOWN),
        _origin(of),
    ]
    return "\n".join(part for part in parts if part)


def dataset_card(of: Provenance, written: Written) -> str:
    """The card of a synthetic corpus."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    texts = written.tokens is not None
    features = Features.from_arrow_schema(written.schema)
    split = SplitInfo("train", num_bytes=written.size, num_examples=written.rows)
    sizes = {"download_size": written.size, "dataset_size": written.size}
    info = DatasetInfo(features=features, splits=SplitDict(train=split), **sizes)
    header = DatasetCardData(
        pretty_name=of.title,
        license=of.licence,
        tags=[*_TAGS, _SYNTHETIC],
        task_categories=["text-generation"] if texts else None,
        size_categories=_size_category(written.rows),
        source_datasets=_hub_corpus(of),
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": DATA}]}],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(header)
    tokens = f", {written.tokens:,} generated tokens" if texts else ""
    about = [("Split", f"train: {written.rows:,} rows{tokens}, {written.size:,} bytes of Parquet")]
    about += [("Shape of a sample", " × ".join(map(str, written.shape)))] if written.shape else []
    if of.row.get("ended") is not None:
        about.append(("Purpose", "rows to look at and to measure: no later generation was trained on them"))
    parts = [
        _front(header, of.title, _corpus_warning(of)),
        _section("What it holds", f"{_table(('', ''), about)}\n\n{_table(('column', 'type', ''), _columns(features))}"),
        _section("How it was generated", _table(("", ""), _generated(of))),
        _section("How its model came to be", _table(("", ""), of.history)),
        _section("Scores of this generation", _table(("metric", "value", "unit", "collapse"), of.scores)),
        _judgement(of),
        _section("Use", _python('from datasets import load_dataset\n\nrows = load_dataset("FOLDER", split="train")')),
        _recipe(of),
        _section("Licence", of.licence or _LICENCE_UNKNOWN),
        _origin(of),
    ]
    return "\n".join(part for part in parts if part)


def _model_warning(of: Provenance) -> str:
    if of.synthetic_share:
        what = (
            f"This model was trained on synthetic data: {100 * of.synthetic_share:.3g}% of this generation's training "
            "set was written by earlier generations of itself."
        )
    elif of.row.get("synthetic_size_cum"):
        what = "This model descends from models that were trained on synthetic data, written by earlier generations."
    else:
        what = (
            "This generation saw human data alone; the generations after it were trained on synthetic data, which "
            "began with what it wrote."
        )
    return (
        f"{what} It was made to study model collapse: it may be degraded, wrong and biased, and is not for other use."
    )


def _corpus_warning(of: Provenance) -> str:
    return (
        f"Every row is synthetic: written by generation {of.generation} of a chain of models that are trained on each "
        "other's output. It was made to study model collapse: do not train on it as if people had written it."
    )


def _generated(of: Provenance) -> list[Line]:
    inputs = of.stage.get("inputs", {})
    decoding, curated = of.decoding, of.recipe.get("curation") or {}
    prompts = (
        "contexts of the human text of generation 0"
        if decoding.get("prompts", "human") == "human"
        else "contexts of the training set of the generation that wrote it"
    )
    settings = ", ".join(f"{key} {value}" for key, value in decoding.items() if key != "prompts")
    lines = [("Model", f"generation {of.generation}, whose weights are stage `{of.row['stage']}`")]
    if decoding:
        lines += [("Decoding", settings), ("Prompts", f"{prompts}, {decoding.get('context_tokens')} tokens each")]
    if (engine := inputs.get("engine")) is not None:
        lines.append(("Engine", ", ".join(f"{key} {engine[key]}" for key in ("kind", "dtype") if key in engine)))
    steps = [_step(one) for one in (curated if isinstance(curated, list) else [curated])]
    lines.append(("Curation", ", then ".join(steps)))
    return lines


def _step(curation: Mapping[str, Any]) -> str:
    """One step of the curation."""
    chosen = ", ".join(f"{key} {value}" for key, value in curation.items() if key != "kind" and value is not None)
    kind = curation.get("kind", "none")
    return "none: every row that was written" if kind == "none" else f"{kind} ({chosen})"


_MEANINGS = {
    "row": "its number in the corpus",
    "prompt": "the text that it continues, which no model is trained on",
    "text": "what the model wrote",
    "seed": "of its sampling",
    "prompt_ids": "tokens of the prompt",
    "generated_ids": "tokens of what the model wrote",
    "weights_version": "the stage of the weights that wrote it",
    "sample": "its values, in row-major order",
}


def _columns(features: Any) -> list[tuple[str, str, str]]:
    return [(name, f"`{feature}`", _MEANINGS.get(name, "")) for name, feature in features.items()]


def _use_of_adapter(of: Provenance) -> str:
    hub = of.starting_model.get("hub")
    return _python(
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'base = AutoModelForCausalLM.from_pretrained("{hub or f"FOLDER/{BASE}"}")\n'
        'model = PeftModel.from_pretrained(base, "FOLDER")'
    )


def _use_of_model(language: bool, of: Provenance) -> str:
    if language:
        return _python(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")'
        ) + (
            "\n\n`generation_config.json` holds the chain's own decoding. The chain's texts have "
            f"{of.decoding.get('max_new_tokens')} tokens each, whatever is drawn; `generate` ends at an end-of-text "
            "token."
            if of.decoding.get("ignore_eos")
            else ""
        )
    return (
        "The weights are plain safetensors; `network.json` describes the network, whose code is in "
        "`fortifai_ray.families.images`.\n\n"
        + _python('from safetensors.torch import load_file\n\nweights = load_file("FOLDER/model.safetensors")')
    )


def _judgement(of: Provenance) -> str:
    sentence, reading = of.conclusion
    onset = _section("When the chain collapsed", "\n".join(f"- {line}" for line in of.onsets))
    found = _section("What the study found", f"{sentence}\n\n{reading}" if sentence else "")
    return "\n".join(part for part in (onset, found) if part)


def _recipe(of: Provenance) -> str:
    return _section("Recipe", f"As a study file has it:\n\n```yaml\n{dump_yaml(of.recipe).rstrip()}\n```")


def _origin(of: Provenance) -> str:
    return _section(
        "Origin", f"Exported by {maker()}. Stage `{of.stage.get('hash')}`, made {of.stage.get('created', 'once')}."
    )


def _hub_corpus(of: Provenance) -> list[str] | None:
    name = (of.recipe.get("corpus") or {}).get("dataset")
    return [str(name)] if name else None


def _size_category(rows: int) -> str:
    steps = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    return next((name for most, name in steps if rows < most), "n>1M")


def _front(header: Any, title: str, warning: str) -> str:
    return f"---\n{header.to_yaml()}\n---\n\n# {title}\n\n> **Warning.** {warning}\n"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n" if text else ""


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    if not lines:
        return ""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines))


def _python(code: str) -> str:
    return f"```python\n{code}\n```"


def with_place(card: str, place: str) -> str:
    """The card with the name of its folder or repository in its examples."""
    return card.replace('"FOLDER', '"' + (PurePath(place).name if PurePath(place).is_absolute() else place))
