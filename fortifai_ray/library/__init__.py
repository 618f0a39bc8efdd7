"""The package from Python: the same as the command line, which is a thin layer over these functions.

The names are those of ``fortifai_ray`` itself, which gives them without importing anything before it is used.
"""

from fortifai_ray.library.chain_files import ChainFiles
from fortifai_ray.library.functions import analyse, load_study, open_study, plan, sweep
from fortifai_ray.library.study_folder import ReportPage, StudyFolder

__all__ = ["ChainFiles", "ReportPage", "StudyFolder", "analyse", "load_study", "open_study", "plan", "sweep"]
