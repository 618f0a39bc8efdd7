"""What becomes of jobs: whoever runs them reports on them, and the driver hands each report on. Nothing here knows Ray:
trials of Ray Tune do it (``trials.py``), and processes of this machine alone (``here.py``)."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fortifai_ray.chain.chain import GenerationResult
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.sweep.progress import SweepProgress
from fortifai_ray.sweep.recorder import Recorder
from fortifai_ray.sweep.work import CohortResult, Config, Job, Result, Verdict, Work, cohorts_of, run_job


@dataclass(frozen=True)
class Mistake:
    """An error that another try would not mend, in one line."""

    error: str


class Finished:
    """A job without a judge has run to its end."""


@dataclass(frozen=True)
class Report:
    """News of a job, and the stages computed and reused since the last. A mistake without a key is the trial's."""

    key: Any
    result: Result | Mistake | Finished
    computed: int = 0
    reused: int = 0


class Runner:
    """Runs jobs of ``work``, and reports on them. A subclass says where what happens is shown."""

    def __init__(self, work: Work, store: StageStore, executor: Executor) -> None:
        self.work, self.store, self.executor = work, store, executor

    def starts(self, job: Job) -> None:
        """A job begins."""

    def announce(self, job: Job, step: str) -> None:
        """A job is now at ``step``."""

    def met(self, job: Job, words: str) -> int:
        """A job met a fault that may pass or last: how often it has met the very same; 0 where nobody counts."""
        return 0

    def run(self, config: Config) -> Iterator[Report]:
        """Yield the reports on all jobs of a configuration. A fault that lasts is reported, not raised: to be retried
        it would be in vain."""
        batches = self.work.jobs(config)
        verdicts: list[Verdict | None] | None = None
        while True:
            try:
                jobs = next(batches) if verdicts is None else batches.send(verdicts)
            except StopIteration:
                return
            except Exception as error:
                if (words := _lasting(error)) is None:
                    raise
                yield Report(None, Mistake(words))
                return
            verdicts = yield from self.run_batch(jobs)

    def run_batch(self, jobs: Sequence[Job]) -> Generator[Report, None, list[Verdict | None]]:
        """Yield the reports on jobs that were asked for together; returns the verdict on each that has one."""
        steps = Steps(self.store, announce=lambda step: self.announce(jobs[0], step))
        known: Mapping[str, CohortResult] = {}
        if len(jobs) > 1:
            try:
                known = cohorts_of(jobs, steps)
            except Exception as error:  # by itself, each job says whether it is the one
                if _lasting(error) is None:
                    raise
        verdicts: list[Verdict | None] = []
        for job in jobs:
            verdicts.append((yield from self._run_job(job, known, steps.computed, steps.reused)))
            steps.computed = steps.reused = 0  # they have been reported
        return verdicts

    def _run_job(
        self, job: Job, known: Mapping[str, CohortResult], computed: int, reused: int
    ) -> Generator[Report, None, Verdict | None]:
        """Yield the reports on a job, the first with the stages of its batch too; returns its verdict."""
        verdict: Verdict | None = None
        try:
            steps = Steps(self.store, announce=lambda step: self.announce(job, step))
            self.announce(job, "starting")
            self.starts(job)
            for result in run_job(job, steps, self.executor, known):
                if isinstance(result, Verdict):
                    verdict = result
                yield Report(job.key, result, computed + steps.computed, reused + steps.reused)
                computed, reused = -steps.computed, -steps.reused
        except Exception as error:
            words = self._given_up(job, error)
            if words is None:
                raise
            yield Report(job.key, Mistake(words))
            return None
        if verdict is None:
            yield Report(job.key, Finished(), computed + steps.computed, reused + steps.reused)
        return verdict

    def _given_up(self, job: Job, error: Exception) -> str | None:
        """The cause, in words, where trying again cannot help; else None."""
        from fortifai_ray.sweep.faults import Fault, fault_of, in_words  # with Ray's own errors

        fault, words = fault_of(error), in_words(error)
        if fault is Fault.LASTING:
            return words
        times = self.met(job, words) if fault is Fault.UNCLEAR else 0
        return f"{words} (the same {times} times)" if times > 1 else None


def _lasting(error: Exception) -> str | None:
    """An error in words, if it lasts."""
    from fortifai_ray.sweep.faults import Fault, fault_of, in_words

    return in_words(error) if fault_of(error) is Fault.LASTING else None


class Reception:
    """Hands each report to the recorder, to the work that asked for it, and to the progress view."""

    def __init__(self, work: Work, recorder: Recorder, progress: SweepProgress) -> None:
        self._work, self._recorder, self._progress = work, recorder, progress
        criteria = [] if work.is_search else work.study.settings.collapse  # a search has a line for each verdict
        self._metrics = list(dict.fromkeys(member.metric for criterion in criteria for member in criterion.members))
        self._ended: set[tuple[str, str]] = set()  # runs of a configuration, and their jobs

    def started(self, config: Config) -> None:
        """The jobs of a configuration begin to run."""
        for job in self._work.announced(config):
            self._recorder.add(job.chains)
            self._progress.add(job.id, job.label, job.steps)

    def take(self, run: str, config: Config, reports: Sequence[Report]) -> None:
        """Reports from a run of a configuration, by its name; one that was started again repeats itself."""
        for report in reports:
            self._recorder.stages(report.computed, report.reused)
            if report.key is None:
                assert isinstance(report.result, Mistake)
                self.fail(run, config, report.result.error)
            else:
                self._take(run, config, self._work.job(report.key), report.result)

    def fail(self, run: str, config: Config, error: str) -> None:
        """A run has failed for good: so have its jobs that have not ended."""
        jobs = list(self._work.announced(config))
        for job in jobs:
            self._fail(run, job, error)
        if not jobs:
            self._progress.say(f"failed: a search inside a trial: {error}; its chains are tried one by one")

    def say_news(self) -> None:
        """Say what the verdicts have changed."""
        for line in self._work.news():
            self._progress.say(line)

    def _take(self, run: str, config: Config, job: Job, result: Result | Mistake | Finished) -> None:
        if (run, job.id) in self._ended:
            return
        self._recorder.add(job.chains)
        if isinstance(result, Mistake):
            self._fail(run, job, result.error)
            self._work.answer(config, job, None)
        elif isinstance(result, Finished):
            self._finish(run, job, "done" if job.chains[0].recipe.batched else None)
        elif isinstance(result, Verdict):
            self._recorder.take(job, result)
            self._finish(run, job, self._work.answer(config, job, result))
        else:
            self._recorder.take(job, result)
            if isinstance(result, GenerationResult):
                self._progress.generation(job.id, result.row, self._metrics)
            else:
                self._progress.completed(job.id, result.cohort_id)

    def _finish(self, run: str, job: Job, words: str | None) -> None:
        self._ended.add((run, job.id))
        for chain in job.chains:
            self._recorder.chain_finished(chain.chain_id)
        self._progress.finished(job.id, "finished")
        if words is not None:
            self._progress.say(f"{job.label}: {words}")

    def _fail(self, run: str, job: Job, error: str) -> None:
        if (run, job.id) in self._ended:
            return
        self._ended.add((run, job.id))
        for chain in job.chains:
            self._recorder.chain_failed(chain.chain_id, error)
        self._progress.finished(job.id, "failed")
        self._progress.say(f"failed: {job.label}: {error}")
