"""How a checkpoint or a corpus came to be: what its card says, from the tables and the manifests behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Literal

import fortifai_ray
from fortifai_ray.metrics import is_bookkeeping, metric
from fortifai_ray.process.git import git
from fortifai_ray.report.headline import headline
from fortifai_ray.results.chain import ChainResults
from fortifai_ray.results.schema import metric_columns
from fortifai_ray.results.words import number
from fortifai_ray.statistics.criterion import criterion_rows
from fortifai_ray.study.study import StudySettings
from fortifai_ray.validation import put

What = Literal["model", "corpus"]
Line = tuple[str, str]
_CORPUS_NAMES = ("source", "path", "dataset", "written_by")


@dataclass(frozen=True)
class Provenance:
    """One generation of a chain.

    Attributes:
        chain: the chain.
        row: the generation's row of ``generations.parquet``.
        stage: the manifest of what is exported.
        human: the manifest of the human corpus; empty where the family has none.
    """

    chain: ChainResults
    row: Mapping[str, Any]
    stage: Mapping[str, Any]
    human: Mapping[str, Any]

    @property
    def generation(self) -> int:
        return int(self.row["generation"])

    @property
    def title(self) -> str:
        return f"{self.chain.name}, generation {self.generation}"

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The chain's recipe as the keys of a study file; of paths on this machine, the last part alone."""
        study = self.chain.study.study
        base = {key: value for key, value in study.items() if key not in StudySettings.model_fields}
        row = self.chain.rows.row(0, named=True)
        return _without_places(put(base, {**_losses(row), **self.chain.varied, "seed": self.chain.seed}))

    @property
    def decoding(self) -> dict[str, Any]:
        return dict(self.recipe.get("decoding") or {})

    @property
    def starting_model(self) -> dict[str, Any]:
        """``family.model``: a preset, a path or a hub's name; empty for other families."""
        return dict((self.recipe.get("family") or {}).get("model") or {})

    @cached_property
    def licence(self) -> str | None:
        """The licence of the pretrained model that the chain began with, where its own card is here."""
        from huggingface_hub import metadata_load, try_to_load_from_cache

        model = dict((self.chain.study.study.get("family") or {}).get("model") or {})
        model |= {k.rpartition(".")[2]: v for k, v in self.chain.varied.items() if k.startswith("family.model.")}
        if model.get("path"):
            card: Any = Path(model["path"]) / "README.md"
        elif model.get("hub"):
            card = try_to_load_from_cache(str(model["hub"]), "README.md", revision=model.get("revision"))
        else:
            return None
        if not isinstance(card, str | Path) or not Path(card).is_file():
            return None
        try:
            found = (metadata_load(Path(card)) or {}).get("license")
        except Exception:  # a card of anybody's: whatever its YAML is
            return None
        return found if isinstance(found, str) else None

    @property
    def human_text(self) -> str:
        """The human corpus by its name, the digest that MLflow has of it too, and that of its text."""
        corpus = self.recipe.get("corpus") or (self.recipe.get("family") or {}).get("data") or {}
        names = [f"{key} {corpus[key]}" for key in _CORPUS_NAMES if corpus.get(key)]
        part = f" ({corpus['name']})" if corpus.get("name") else ""
        text = (self.human.get("inputs") or {}).get("text")
        digests = [f"digest {self.human['hash']}"] if self.human.get("hash") else []
        digests += [f"SHA-256 of its text {text}"] if text else []
        return ", ".join([f"{', '.join(names) or 'not named'}{part}", *digests])

    @property
    def synthetic_share(self) -> float:
        """The share of the generation's own training set that is synthetic."""
        return float(self.row.get("synthetic_ratio_realised") or 0.0)

    @property
    def history(self) -> list[Line]:
        """How the generation came to be, as (name, value)."""
        row, unit = self.row, self.row.get("unit") or "units"
        asked = row.get("regime.synthetic_ratio")
        regime = f"{row.get('regime.kind')}" + (f", synthetic ratio {number(asked)}" if asked is not None else "")
        init = (self.recipe.get("training") or {}).get("init")
        model = ", ".join(f"{key} {value}" for key, value in self.starting_model.items() if value is not None)
        gamma = row.get("loss.gamma")
        lines = [
            ("Study", f"{self.chain.study.name}, chain `{self.chain.chain_id}`, {self.chain.cell}"),
            ("Seed", str(self.chain.seed)),
            ("Generation", f"{self.generation}, of those from 0 to {self.chain.rows['generation'][-1]}"),
            ("Regime", regime),
            ("Loss", f"{row.get('loss.kind')}" + (f", γ = {number(gamma)}" if gamma is not None else "")),
            (
                "Training set",
                f"{_count(row.get('human_size'))} human and {_count(row.get('synthetic_size'))} synthetic {unit} "
                f"({100 * self.synthetic_share:.3g}% synthetic)",
            ),
            ("Synthetic so far", f"{_count(row.get('synthetic_size_cum'))} {unit}, over all generations up to this"),
            ("Family", str(row.get("family.kind"))),
            *([("Starting model", model)] if model else []),
            *([("Each generation starts from", str(init))] if init else []),
            ("Human data", self.human_text),
        ]
        return lines

    @property
    def scores(self) -> list[tuple[str, str, str, str]]:
        """The generation's metrics: name, value, unit, and which way collapse moves it."""
        names = metric_columns(self.row, self.chain.study.varied)
        known = [(name, self.row[name]) for name in names if not is_bookkeeping(name)]
        return [
            (metric(name).title, number(value, 4), metric(name).unit, metric(name).sense)
            for name, value in known
            if isinstance(value, int | float)
        ]

    @property
    def onsets(self) -> list[str]:
        """Under each criterion of the study, whether and when the chain collapsed."""
        chains, lines = self.chain.study.chains, list[str]()
        if chains is None:
            return []
        for criterion in self.chain.study.criteria:
            found = chains.filter(criterion_rows(criterion)).filter(chain_id=self.chain.chain_id)
            for row in found.rows(named=True):
                when = f", onset at generation {number(row['onset'])}" if row.get("onset") is not None else ""
                lines.append(f"{criterion.words}: **{row['status']}**{when}")
        return lines

    @cached_property
    def conclusion(self) -> tuple[str, str]:
        """The study's, as its report begins: a sentence, and how it is to be read."""
        return headline(self.chain.study)

    def identity(self, what: str) -> dict[str, Any]:
        """What makes two exports exports of the same thing."""
        return {"what": what, "chain_id": self.chain.chain_id, "generation": self.generation}


def maker() -> str:
    """The package's version and, where it runs from a clone of its repository, the commit."""
    root = Path(fortifai_ray.__file__).parent.parent
    commit = git("rev-parse", "HEAD", folder=root) if (root / ".git").exists() else ""
    return f"fortifai_ray {fortifai_ray.__version__}" + (f", commit {commit}" if commit else "")


def _losses(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("loss.kind", "loss.gamma") if row.get(key) is not None}


def _count(value: Any) -> str:
    return "–" if value is None else f"{int(value):,}"


def _without_places(value: Any) -> Any:
    """A recipe without the paths of this machine, which concern nobody else."""
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    is_path = isinstance(value, str) and PurePath(value).is_absolute()
    return PurePath(value).name if is_path else value
