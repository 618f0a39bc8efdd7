"""What can only be seen by looking: corpora, models and addresses, looked at before anything is started."""

import socket

from fortifai_ray.chain import Corpora
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.corpus import Corpus, prepare_corpus
from fortifai_ray.families.language.family import METRICS, Devices, LanguageFamily
from fortifai_ray.families.language.models import context_length
from fortifai_ray.steps import Steps
from fortifai_ray.store import StageStore
from fortifai_ray.study import Chain, Study


def prepare_corpora(study: Study, store: StageStore) -> Corpora:
    """The tokenised corpora of a study's recipes and of their baselines, each read and tokenised once."""
    recipes = [chain.recipe for chain in study.chains] + [study.baseline_of(chain) for chain in study.chains]
    wanted = dict.fromkeys((recipe.corpus, recipe.family.model) for recipe in recipes)
    return {(corpus, model): prepare_corpus(corpus, model, store) for corpus, model in wanted}


def check_study(study: Study, store: StageStore) -> Corpora:
    """Everything about a study that its files alone do not tell: corpora that are long enough, metrics that exist.

    Returns the corpora, prepared. Raises :class:`UserError` for what is not as it should be.
    """
    for criterion in study.settings.collapse:
        if criterion.metric not in METRICS:
            raise UserError(
                f"{study.source}: collapse.metric: {criterion.metric} is not measured ({', '.join(METRICS)})"
            )
    corpora, seen = prepare_corpora(study, store), set()
    for chain in study.chains:
        recipe = chain.recipe
        kind = (recipe.corpus, recipe.family, recipe.training, recipe.decoding)
        if kind not in seen:
            seen.add(kind)
            _check_corpus(study, chain, corpora[recipe.corpus, recipe.family.model], store)
    return corpora


def _check_corpus(study: Study, chain: Chain, corpus: Corpus, store: StageStore) -> None:
    recipe = chain.recipe
    family = LanguageFamily(recipe, corpus, Steps(store), Devices())
    blocks, size, batch = len(family.human().items), recipe.training.block_size, recipe.training.batch_size
    if blocks < batch:
        raise UserError(
            f"{study.source}: corpus: {blocks * size} training tokens are too few for one batch of "
            f"{batch} blocks of {size}; a longer text or a smaller training.batch_size is needed"
        )
    if len(corpus.held_out) < size:
        raise UserError(
            f"{study.source}: corpus.held_out: {len(corpus.held_out)} held-out tokens are less than one block "
            f"of {size}; hold out more or make training.block_size smaller"
        )
    _check_lengths(study, chain)


def _check_lengths(study: Study, chain: Chain) -> None:
    recipe, size = chain.recipe, chain.recipe.training.block_size
    longest = context_length(recipe.family.model)
    row = recipe.decoding.context_tokens + recipe.decoding.max_new_tokens
    if longest is not None and max(row, size) > longest:
        key = "decoding.max_new_tokens" if row > longest else "training.block_size"
        raise UserError(
            f"{study.source}: {key}: rows of {max(row, size)} tokens do not fit the model's context of {longest}; "
            "context_tokens + max_new_tokens, and block_size, may be as much"
        )
    if recipe.decoding.context_tokens > size:
        raise UserError(
            f"{study.source}: decoding.context_tokens: {recipe.decoding.context_tokens} is more than a block of "
            f"{size} tokens; at most training.block_size is right"
        )


def check_address(address: str | None) -> None:
    """Whether anything listens there: Ray itself would try for minutes before it says that nothing does."""
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdigit() or "/" in host:  # started here, or a form that Ray resolves ("auto", ray://)
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error}); give a Ray cluster's HOST:PORT"
        ) from error
