"""How many items a cluster has room for, as its machines come and go."""

from __future__ import annotations

import json

import pytest

from cluster import ClusterError, places
from cluster.dispatcher import Dispatcher
from cluster.messages import Need
from cluster.places import AHEAD, Places, autoscales, room

Cluster = dict[str, list[dict[str, float]] | bool]
CPUS = {"CPU": 8.0}
GPUS = {"CPU": 16.0, "GPU": 4.0, "accelerator_type:H100": 1.0}


@pytest.mark.parametrize(
    ("need", "on_cpus", "on_gpus"),
    [
        (Need(1, 0), 8, 16),  # CPU-only machines are used, and so are the cores of others
        (Need(0.5, 0), 16, 32),
        (Need(3, 0), 2, 5),
        (Need(1, 1), 0, 4),
        (Need(8, 1), 0, 2),
        (Need(1, 0.25), 0, 16),
        (Need(0, 0.3), 0, 12),  # three to a GPU: what is left of two makes no place
        (Need(1, 2), 0, 2),
        (Need(1, 1, "H100"), 0, 4),
        (Need(1, 1, "A100"), 0, 0),
        (Need(0.1, 0), 80, 160),
    ],
)
def test_room_on_a_machine(need: Need, on_cpus: int, on_gpus: int) -> None:
    assert (room(need, CPUS), room(need, GPUS)) == (on_cpus, on_gpus)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Machines and whether more come; every look is a new one."""
    there: Cluster = {"machines": [CPUS], "grows": False}
    monkeypatch.setattr(places, "machines", lambda: there["machines"])
    monkeypatch.setattr(places, "autoscales", lambda: there["grows"])
    monkeypatch.setattr(places, "LOOK_EVERY", 0.0)
    return there


def test_places_follow_the_machines_and_never_end(cluster: Cluster) -> None:
    found = Places(Need(1, 0), 100)
    assert found.count() == 8
    cluster["machines"] = [CPUS, GPUS]
    assert found.count() == 24
    cluster["machines"] = []
    assert found.count() == 1  # which waits for a machine
    assert Places(Need(1, 0), 3).count() == 1
    cluster["machines"] = [CPUS, GPUS]
    assert Places(Need(1, 0), 3).count() == 3


def test_where_machines_come_by_themselves_more_is_asked_for_than_fits(
    cluster: Cluster,
) -> None:
    cluster |= {"machines": [], "grows": True}
    Places(Need(1, 1), 100).check()  # nothing there has a GPU yet
    assert Places(Need(1, 1), 100).count() == AHEAD
    cluster["machines"] = [GPUS]
    assert Places(Need(1, 1), 100).count() == 4 + 4 + AHEAD
    assert Places(Need(1, 1), 5).count() == 5


def test_what_no_machine_can_take_is_refused(cluster: Cluster) -> None:
    cluster["machines"] = [CPUS, GPUS]
    there = "8 CPUs and 0 GPUs; 16 CPUs and 4 GPUs (H100)"
    said = f"an item needs 1 CPUs and 1 GPUs of type A100, but no machine has that: {there}"
    with pytest.raises(ClusterError) as caught:
        Places(Need(1, 1, "A100"), 1).check()
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("kinds", "grows"),
    [
        (None, False),
        ({"10.0.0.1": "node_0a0b", "10.0.0.2": "node_0c0d"}, False),
        ({"10.0.0.1": "ray.head.default"}, True),
    ],
)
def test_a_cluster_that_grows_is_told_by_what_its_autoscaler_says(
    monkeypatch: pytest.MonkeyPatch, kinds: dict[str, str] | None, grows: bool
) -> None:
    said = b"" if kinds is None else json.dumps({"autoscaler_report": {"node_type_mapping": kinds}}).encode()
    monkeypatch.setattr(places, "is_autoscaler_v2", lambda: False)
    monkeypatch.setattr(places, "_internal_kv_get", lambda key: said)
    assert autoscales() is grows


def test_no_more_processes_than_places_and_than_items_that_are_left() -> None:
    free = 5
    told = Dispatcher(3, lambda: free, lambda event: None, lambda: False)
    told.on_step_begin(0, [])
    assert told.processes.max_concurrent == 3
    told.running = {"a": told.waiting.popleft()}
    told.on_step_begin(1, [])
    assert told.processes.max_concurrent == 3
    told.running = {}
    told.on_step_begin(2, [])
    assert told.processes.max_concurrent == 2
    free = 1
    told.on_step_begin(3, [])
    assert told.processes.max_concurrent == 1
