"""What a study file says of the signs of collapse."""

from pydantic import BaseModel, ConfigDict, Field


class SignsConfig(BaseModel):
    """Which signs are computed of each generation, and on how much.

    What a corpus's signs are depends on its size. So they are taken on the first ``tokens`` generated tokens, and the
    human reference is cut to the same number; where either holds fewer, both are cut to what the smaller one holds.
    The same goes for the models: ``documents`` rows, drawn by the recipe's seed, the same in each generation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    corpus: bool = Field(True, description="signs that need no model")
    model: bool = Field(True, description="signs of the model on held-out human text and on what it wrote")
    tokens: int = Field(10_000_000, ge=1, description="generated tokens that the corpus's signs are taken on")
    smoothing: float = Field(0.5, gt=0.0, allow_inf_nan=False, description="pseudo-count of each n-gram, for the KL")
    self_bleu_documents: int = Field(1000, ge=2, le=1000, description="documents that self-BLEU is taken on, at most")
    documents: int = Field(128, ge=1, description="synthetic documents that the models score, at most")
    gamma: float = Field(0.3, gt=0.0, le=1.0, description="the threshold that the kept fractions are reported at")
    calibration_bins: int = Field(15, ge=1, le=1000, description="of equal width over [0, 1]")
