"""Families of models: the only place that knows tensors from points. Declared here: metrics that several of them share.

One name means one thing, whatever the family; where families compute it differently, their docstrings say how.
"""

from functools import partial

from fortifai_ray.metrics import DISTRIBUTION, MODEL, TRAINING, Metric

_FORTIFAI = "Shabgahi et al. 2025, ForTIFAI"
_training = partial(Metric, group=TRAINING)
_distance = partial(Metric, direction="above", group=DISTRIBUTION)

TRAIN_LOSS = _training(
    "train_loss",
    "nats",
    "mean loss over the last epoch",
    "fortifai_ray.losses",
    title="training loss (nats)",
    direction="below",
)
KEPT_FRACTION = _training(
    "kept_fraction",
    "fraction of target tokens",
    "share of the training targets (tokens, pixels or samples) that the loss did not truncate",
    _FORTIFAI,
    title="kept fraction of target tokens",
    direction="below",
)
MEAN_TARGET_PROBABILITY = _training(
    "mean_target_probability",
    "probability",
    "mean probability of the training targets",
    _FORTIFAI,
    direction="above",
)
TRACE_RATIO = Metric(
    "trace_ratio",
    "ratio",
    "trace of the covariance of the model or its samples, over the trace of the true covariance",
    "Shumailov et al. 2024, AI models collapse when trained on recursively generated data",
    title="trace ratio (fitted covariance over the true one's)",
    direction="below",
    scale="log",
    group=DISTRIBUTION,
    role="variety",
    rank=5,
)
LINEAGE_DISTANCE = Metric(
    "lineage_distance",
    "distance",
    "between a lineage's model and the others', their mean: 2-Wasserstein (exact for Gaussians, sliced between samples "
    "otherwise), or the Jensen-Shannon divergence of discrete distributions",
    "Dowson and Landau 1982; Bonneel et al. 2015; Lin 1991",
    title="distance to the other lineages",
    direction="below",
    group=DISTRIBUTION,
)
KL_DIVERGENCE = _distance(
    "kl_divergence",
    "nats",
    "KL(truth ‖ model); for a VAE KL(posterior ‖ prior) of held-out images, the second half of the ELBO",
    "Kullback and Leibler 1951, equation 2.4; VAE: Kingma and Welling 2014, appendix B",
    title="KL divergence",
    role="fit",
    rank=3,
)
WASSERSTEIN = _distance(
    "wasserstein",
    "distance",
    "2-Wasserstein distance between model and truth: exact for Gaussians, sliced between samples otherwise",
    "Dowson and Landau 1982 (Gaussians); Bonneel et al. 2015 (sliced)",
    title="2-Wasserstein distance",
    role="fit",
    rank=4,
)
EXCESS_RISK = _distance(
    "excess_risk",
    "risk",
    "expected loss of a regression on new inputs above that of the truth: squared error (linear), nats (logistic)",
    "Gerstgrasser et al. 2024; Dey and Donoho 2024",
)
PARAMETER_ERROR = _distance(
    "parameter_error",
    "squared",
    "squared error of the fitted parameters; of a fitted mean, over the true mean's square",
    "Dey and Donoho 2024",
)
PERPLEXITY = Metric(
    "perplexity",
    "per token",
    "exp of the mean −ln p per token of the held-out human text",
    "Jelinek et al. 1977",
    title="held-out perplexity (per token)",
    direction="above",
    scale="log",
    group=MODEL,
    role="fit",
    rank=1,
)
