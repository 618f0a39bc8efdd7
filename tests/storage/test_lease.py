"""One holder at a time, by objects alone; a dead holder's lease ends."""

import threading
import time
from pathlib import Path

import pytest
from pyarrow import fs

from fortifai_ray.storage.lease import FOLDER, Leases, _Watch
from fortifai_ray.storage.objects import Objects


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    """Files on a local disk, which shows what was written at once, as object stores do."""
    (tmp_path / FOLDER).mkdir(parents=True)
    return Objects(fs.LocalFileSystem(), str(tmp_path))


def test_never_two_at_once(objects: Objects) -> None:
    """Eight machines go for one step again and again: none ever meets another inside."""
    inside: list[int] = []
    most = []

    def go(node: int) -> None:
        leases = Leases(objects, f"node{node}", expiry=30, beat=0.3)
        for _ in range(2):
            with leases.hold("step", lambda seconds: None):
                inside.append(node)
                most.append(len(inside))
                time.sleep(0.01)
                inside.remove(node)

    threads = [threading.Thread(target=go, args=(node,)) for node in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 16
    assert objects.entries(FOLDER) == []


def test_a_dead_holders_lease_expires(objects: Objects, caplog: pytest.LogCaptureFixture) -> None:
    """A ticket that nobody renews is removed, and the log says why; who waits is told so meanwhile."""
    objects.write(f"{FOLDER}/step.dead.1", b"1")
    waited: list[float] = []
    with Leases(objects, "mine", expiry=2.0, beat=1.5).hold("step", waited.append):  # longer than any back-off
        assert [entry.name.split(".")[2] for entry in objects.entries(FOLDER)] == ["mine"]
    assert waited[-1] >= 1.0
    assert "has died" in caplog.text


def test_a_living_holder_keeps_its_lease(objects: Objects) -> None:
    """It renews its ticket for as long as it computes."""
    order: list[str] = []
    holds = threading.Event()

    def compute() -> None:
        with Leases(objects, "first", expiry=2.0, beat=0.1).hold("step", lambda seconds: None):
            holds.set()
            time.sleep(3.0)
            order.append("first")

    thread = threading.Thread(target=compute)
    thread.start()
    holds.wait()
    with Leases(objects, "second", expiry=2.0, beat=0.3).hold("step", lambda seconds: None):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_the_dead_of_this_machine_are_not_waited_for(objects: Objects) -> None:
    """Who asks holds the machine's own lock: another ticket of the machine has no owner."""
    objects.write(f"{FOLDER}/step.mine.1", b"1")
    with Leases(objects, "mine", expiry=1000).hold("step", lambda seconds: pytest.fail("waited")):
        pass


def test_other_steps_are_not_waited_for(objects: Objects) -> None:
    """Leases on different steps have nothing to do with each other."""
    objects.write(f"{FOLDER}/another.node.1", b"1")
    with Leases(objects, "mine").hold("step", lambda seconds: pytest.fail("waited")):
        pass


def test_silence_during_an_outage_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the service did not answer, no holder could renew its ticket: the count begins anew."""
    now = [0.0]
    monkeypatch.setattr("fortifai_ray.storage.lease.time.monotonic", lambda: now[0])
    watch, ticket = _Watch(expiry=60, beat=15), {"ticket": (1, 0.0)}
    for now[0] in (1.0, 20.0, 40.0):
        assert watch.expired(ticket) == []
    now[0] = 140.0  # the listing took a hundred seconds
    assert watch.expired(ticket) == []
    for now[0] in (150.0, 170.0, 190.0):
        assert watch.expired(ticket) == []
    now[0] = 201.0
    assert watch.expired(ticket) == ["ticket"]
