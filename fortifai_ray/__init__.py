"""Recursive-training studies on Ray: when a generative model collapses, what delays it, and by how much.

The names in ``__all__`` are the package's own from Python (docs/python.md); each is imported when it is first used, so
that ``import fortifai_ray`` costs nothing.
"""

from fortifai_ray.process.imports import hide_foreign_companions
from fortifai_ray.process.search_path import add_own_folders

TYPE_CHECKING = False  # nothing is imported here, that a file of the working folder could hide: not even `typing`
if TYPE_CHECKING:
    from fortifai_ray.errors import UserError as UserError
    from fortifai_ray.library import ChainFiles as ChainFiles
    from fortifai_ray.library import ReportPage as ReportPage
    from fortifai_ray.library import StudyFolder as StudyFolder
    from fortifai_ray.library import analyse as analyse
    from fortifai_ray.library import load_study as load_study
    from fortifai_ray.library import open_study as open_study
    from fortifai_ray.library import plan as plan
    from fortifai_ray.library import sweep as sweep
    from fortifai_ray.losses import ClippedFocal as ClippedFocal
    from fortifai_ray.losses import CrossEntropy as CrossEntropy
    from fortifai_ray.losses import DynamicTruncatedCrossEntropy as DynamicTruncatedCrossEntropy
    from fortifai_ray.losses import Entropy as Entropy
    from fortifai_ray.losses import Focal as Focal
    from fortifai_ray.losses import LovaszSoftmax as LovaszSoftmax
    from fortifai_ray.losses import TruncatedCrossEntropy as TruncatedCrossEntropy
    from fortifai_ray.losses import UserLoss as UserLoss
    from fortifai_ray.losses.hugging_face import use_fused_loss as use_fused_loss

__version__ = "0.1.0"

_LOSSES = (
    *("ClippedFocal", "CrossEntropy", "DynamicTruncatedCrossEntropy", "Entropy", "Focal", "LovaszSoftmax"),
    *("TruncatedCrossEntropy", "UserLoss"),
)
_STUDIES = ("ChainFiles", "ReportPage", "StudyFolder", "analyse", "load_study", "open_study", "plan")
_HOME = {  # of each public name: the module that has it
    "UserError": "fortifai_ray.errors",
    "use_fused_loss": "fortifai_ray.losses.hugging_face",
    **dict.fromkeys(_STUDIES, "fortifai_ray.library"),
    **dict.fromkeys(_LOSSES, "fortifai_ray.losses"),
    "sweep": "",  # the room of that name, which can be called: one name cannot be both
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "sweep":
        return import_module("fortifai_ray.sweep")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


add_own_folders()  # in a worker, this is the first of the package that runs
hide_foreign_companions()
