"""Keeps MLflow's copy of a study's folder complete, from a background thread of the driver.

The folder is the truth; MLflow is a mirror of it. MLflow is slow to start (its import and its database take about seven
seconds) and may be far away or down, so a sweep never waits for it and never fails with it: whatever could not be sent
is sent again, and :meth:`StudySync.close` says what is missing in the end.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NoReturn

from fortifai_ray.errors import UserError
from fortifai_ray.results.fingerprint import fingerprint
from fortifai_ray.results.schema import part_paths, table_path
from fortifai_ray.tracking.address import one_line, prepare_environment, redact, some, tracking_uri_for
from fortifai_ray.tracking.content import StudyContent
from fortifai_ray.tracking.limits import is_refusal
from fortifai_ray.tracking.machine_load import Monitor, is_due, watch
from fortifai_ray.tracking.run_content import RunContent, content_hash
from fortifai_ray.tracking.runs import StudyRuns

log = logging.getLogger("fortifai_ray.tracking")

StudyStatus = Literal["finished", "failed", "interrupted"]
_RUN_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_SEND_LATER = "once MLflow answers, the same `fortifai sweep` sends what is missing, and computes nothing again"
# Of the time, what may go into reading the folder and sending while the sweep runs. Where news come from hundreds of
# chains at once, a cluster computes them, and this process has little else to do.
_SHARE, _SHARE_OF_MANY, _MANY = 0.1, 0.5, 100
_BETWEEN_TABLES = 60.0  # seconds between two uploads of the tables while the sweep runs
_LAST_FAILURE = 3  # in a row: the rest would fail, too


@dataclass(frozen=True)
class TrackingOutcome:
    """What MLflow lacks in the end, a line each, and where the rest is.

    The ids are None where MLflow was never reached.
    """

    problems: list[str]
    experiment_id: str | None
    study_run_id: str | None


@dataclass(frozen=True)
class _Part:
    """Something that MLflow should hold; ``send`` is idempotent."""

    what: str
    send: Callable[[], None]
    key: str = ""  # of the nested run that it belongs to


class StudySync:
    """Makes MLflow hold a study, from its folder ``STORAGE/NAME`` alone. Only :meth:`close` waits for it.

    The experiment has the study's name. In it the study is a run; nested in it are a run for each chain, for each cell
    of batched chains, and for each cell of a search.

    Raises:
        UserError: the folder has no readable ``study.yaml``.
    """

    def __init__(self, folder: Path, storage: Path, tracking_uri: str | None = None) -> None:
        uri = tracking_uri_for(storage, tracking_uri)
        self._folder, self._tracking_uri, self._uri = folder, uri, redact(uri)
        self._content = StudyContent(folder)
        self._runs = StudyRuns(storage, self._content.study_file, uri)
        self._changed = threading.Condition()
        self._poked = False
        self._status: StudyStatus | None = None  # once the study has ended
        self._missing: dict[str, str] = {}  # what MLflow lacks, and why
        self._refused: dict[str, str] = {}  # what MLflow never takes, and why
        self._sent = 0
        self._held: dict[str, int] = {}  # each chain's last generation in MLflow
        self._tables_due = 0.0
        self._warned = False
        self._outcome: TrackingOutcome | None = None
        self._thread = threading.Thread(target=self._work, name="fortifai-mlflow", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Say that the folder has changed."""
        with self._changed:
            self._poked = True
            self._changed.notify_all()

    def close(self, status: StudyStatus, patience: float = 60.0) -> TrackingOutcome:
        """Send what is missing, end the runs, and say what could not be sent; never raises.

        Everything is attempted once more; waiting ends when nothing has got through for ``patience`` seconds. A second
        call returns the first one's outcome.
        """
        if self._outcome is None:
            with self._changed:
                self._status = status
                self._missing = self._missing or {"the study": ""}
                self._changed.notify_all()
            sent, deadline = self._sent, time.monotonic() + patience
            while self._thread.is_alive() and time.monotonic() < deadline:
                self._thread.join(0.1)
                if self._sent != sent:
                    sent, deadline = self._sent, time.monotonic() + patience
            problems = [*self._unsent(), *self._never(), *self._runs.refusals(), *self._runs.differences()]
            self._outcome = TrackingOutcome(problems, self._runs.experiment_id, self._runs.study_run_id)
        return self._outcome

    def _work(self) -> None:
        prepare_environment()
        failures, rest, begun = 0, 0.0, time.monotonic()
        watched: Monitor | None = None
        if not (running := self._awaken(rest)) and self._nothing_is_missing():
            self._missing = {}
            return
        self._send([self._file(self._folder / "study.yaml")])
        while running:
            started, sent = time.monotonic(), self._sent
            if watched is None and self._runs.study_run_id and not failures and is_due(started - begun):
                watched = watch(self._runs.study_run_id, self._tracking_uri)
            complete = self._send(self._while_running())
            failures = 0 if complete else failures + 1
            share = _SHARE_OF_MANY if self._sent - sent >= _MANY else _SHARE
            rest = max(1.0, (time.monotonic() - started) * (1 / share - 1))
            if failures:  # a dead server is not hammered
                rest = min(60.0, 2.0 ** (failures - 1))
                self._poked = True
            running = self._awaken(rest)
        assert self._status is not None
        if watched is not None:
            watched.finish()
        parts = self._in_the_end(self._status)
        labels = [part.what for part in parts]
        with suppress(Exception):  # The part that reads them says why.
            labels = [
                *(self._content.overview.label(one) for one in self._content.due(self._held, ended=True)),
                *labels,
            ]
        self._missing = dict.fromkeys(labels, "")
        self._send(chain(self._chains(ended=True), parts))

    def _awaken(self, rest: float) -> bool:
        """Wait until the folder has changed, but at least ``rest`` seconds; False: the study has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._status is not None, timeout=rest)
            self._changed.wait_for(lambda: self._poked or self._status is not None)
            self._poked = False
            return self._status is None

    def _send(self, parts: Iterable[_Part]) -> bool:
        """Attempt each part; whether all were sent. Stops where nothing gets through, or the study has ended."""
        status, failures, complete = self._status, 0, True
        for part in parts:
            if failures == _LAST_FAILURE or self._status != status:
                return False
            if part.what in self._refused and status is None:
                continue
            try:
                part.send()
            except Exception as error:  # Whatever MLflow, its database or its artefact store raises: the sweep goes on.
                self._runs.forget(part.key)
                refused = is_refusal(error)
                self._failed(part, one_line(error), refused=refused)
                # A refusal is MLflow's answer, and a UserError says what is wrong in the folder: neither means that
                # MLflow is away.
                failures += not refused and not isinstance(error, UserError)
                complete = complete and refused
            else:
                self._missing.pop(part.what, None)
                self._refused.pop(part.what, None)
                self._sent += 1
                failures = 0
        return complete

    def _failed(self, part: _Part, error: str, *, refused: bool) -> None:
        (self._refused if refused else self._missing)[part.what] = error
        if refused:
            self._missing.pop(part.what, None)
        if not self._warned:
            self._warned = True
            then = "the folder alone has it" if refused else "what MLflow lacks is sent again later"
            log.warning("MLflow (%s) did not accept %s: %s. The sweep goes on; %s.", self._uri, part.what, error, then)

    def _never(self) -> list[str]:
        """A line for each reason for which MLflow refuses records as they are."""
        reasons: dict[str, list[str]] = {}
        for what, error in self._refused.items():
            reasons.setdefault(error, []).append(what)
        return [
            f"MLflow ({self._uri}) refuses {some(whats)}: {reason}; {self._folder} has all of it"
            for reason, whats in reasons.items()
        ]

    def _unsent(self) -> list[str]:
        """A line for each reason, with what it kept back, and what to do."""
        last = next((error for error in reversed(self._missing.values()) if error), "no answer in time")
        reasons: dict[str, list[str]] = {}
        for what, error in self._missing.items():
            reasons.setdefault(error or last, []).append(what)
        lines = [
            f"{len(whats)} record{'s' * (len(whats) > 1)} not sent to MLflow ({self._uri}): {some(whats)}: {reason}"
            for reason, whats in reasons.items()
        ]
        return [*lines, f"all of it is in {self._folder}: {_SEND_LATER}"] if lines else []

    # what MLflow should hold

    def _while_running(self) -> Iterator[_Part]:
        yield from self._chains(ended=False)
        if time.monotonic() >= self._tables_due:
            yield _Part("the tables", self._hold_tables)
            yield _Part("the overview", partial(self._hold_overview, ended=False))

    def _chains(self, *, ended: bool) -> Iterator[_Part]:
        return self._read("the chains", lambda: self._content.chains(self._held, ended=ended))

    def _in_the_end(self, status: StudyStatus) -> list[_Part]:
        """All but the chains."""
        content, results = self._content, self._folder / "results"
        files = [path for path in sorted(results.glob("*")) if path.suffix in (".parquet", ".json")]
        return [
            *self._read("the cells", content.cells),
            *self._read("the search", content.searches),
            *(self._file(file) for file in (self._folder / "study.yaml", self._folder / "report.html", *files)),
            _Part("the overview", partial(self._hold_overview, ended=status != "interrupted")),
            _Part("the end of the study", partial(self._end, status)),
        ]

    def _end(self, status: StudyStatus) -> None:
        """Sent last, and with the folder's fingerprint where MLflow then holds all of it."""
        ended = {"the end of the study"}
        whole = status == "finished" and not (self._missing.keys() - ended or self._refused.keys() - ended)
        whole = whole and not (self._runs.refusals() or self._runs.differences())
        self._runs.end_study(status, _RUN_STATUS[status], self._fingerprint() if whole else None)

    def _nothing_is_missing(self) -> bool:
        """Whether the study has ended as it did before, and MLflow has held all of it since."""
        content = self._fingerprint() if self._status == "finished" else None
        return content is not None and self._runs.hold_all_of(content)

    def _fingerprint(self) -> str | None:
        """The hash of the folder's content; None where it cannot be read."""
        try:
            return content_hash([fingerprint(self._folder), (self._folder / "report.html").read_text("utf-8")])
        except Exception:  # A damaged table costs nothing but its own records.
            return None

    def _read(self, what: str, read: Callable[[], Iterable[RunContent]]) -> Iterator[_Part]:
        """A part for each run, as they are read; where the folder cannot be read, one that says so."""
        try:
            for run in read():
                yield _Part(run.label, partial(self._hold, run), run.key)
        except Exception as error:  # A damaged table costs nothing but its own records.
            yield _Part(what, partial(_fail, error))

    def _hold(self, run: RunContent) -> None:
        self._runs.hold(run)
        self._held[run.key] = max(run.series, default=-1)

    def _file(self, file: Path) -> _Part:
        """A file of the study's folder, at the same place among the artefacts."""
        place = file.parent.relative_to(self._folder).as_posix()
        return _Part(file.name, lambda: self._runs.hold_file(file, None if place == "." else place))

    def _hold_overview(self, *, ended: bool) -> None:
        self._runs.hold_study(self._content.overview.read(ended=ended))

    def _hold_tables(self) -> None:
        """Upload the generations so far, so that a study can be read from MLflow while it runs."""
        for file in (table_path(self._folder, "generations"), *part_paths(self._folder, "generations")):
            with suppress(FileNotFoundError):  # The sweep merges part files into the table.
                self._file(file).send()
        self._tables_due = time.monotonic() + _BETWEEN_TABLES


def _fail(error: Exception) -> NoReturn:
    raise error
