"""The one error of this package, importable without Polars or Altair."""

from fortifai_ray.errors import UserError


class ReportError(UserError):
    """A study's directory cannot be reported on; the message names the file and says what would be right."""
