"""Tasks on a Ray cluster of two nodes (processes of this machine): where and how many run at once, what they demand,
and what a user reads when a node is not as it should be.
"""

import dataclasses
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest

from omniprep.compiler.run import cluster, workers
from omniprep.compiler.run.cluster import ray_session
from omniprep.compiler.run.workers import run_tasks
from omniprep.errors import OmniprepError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    sizes = {"num_cpus": 2, "object_store_memory": 100 << 20, "memory": 4 << 30}
    made = Cluster(initialize_head=True, head_node_args=sizes)
    made.add_node(**sizes)
    yield made.address
    made.shutdown()


def nap_tasks(count: int) -> list[Any]:
    @dataclasses.dataclass(frozen=True)
    class Nap:  # in here, so that it travels to Ray's workers by value
        out: str = ""
        fence: None = None
        isolate: bool = False

        def run(self):
            import ray

            began = time.time()
            time.sleep(1.5)
            return began, time.time(), ray.get_runtime_context().get_node_id()

    return [Nap() for _ in range(count)]


def most_at_once(results: list[Any]) -> int:
    """Most tasks that ran at one time, by when they began and ended."""
    return max(sum(begin <= moment < end for begin, end, _ in results) for moment, _, _ in results)


@pytest.mark.parametrize(("wanted", "grow", "at_once"), [(2, False, 2), (4, True, 4)])
def test_tasks_at_once_and_their_nodes(address: str, wanted: int, grow: bool, at_once: int) -> None:
    """A number of workers holds in a cluster that has more CPUs; auto uses all; and both nodes take part."""
    with ray_session(wanted, address):
        results = [result for _, result in run_tasks(nap_tasks(10), wanted, [], print, grow=grow)]
    assert most_at_once(results) == at_once and len({node for _, _, node in results}) == 2


def test_tasks_that_need_much_memory_share_no_node(address: str) -> None:
    with ray_session(4, address):
        memory = [int(1.6 * 2**30)] * 4  # with what any task takes, 2.75 GiB of a node's 4
        results = [result for _, result in run_tasks(nap_tasks(4), 4, [], print, memory=memory)]
    assert most_at_once(results) == 2


def test_a_demand_that_no_node_can_meet_is_named(address: str, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 3.0)
    monkeypatch.setattr(workers, "LOOK_SECONDS", 1.0)
    told: list[str] = []
    with ray_session(2, address), pytest.raises(OmniprepError, match=r"1 CPU and 65.0 GiB.*the largest has 4.0 GiB"):
        list(run_tasks(nap_tasks(1), 2, [], told.append, memory=[64 << 30]))
    assert len(told) == 1 and "waiting for one" in told[0]


def test_a_local_ray_runs_what_is_larger_than_it_alone(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told: list[str] = []
    with ray_session(2, None):
        results = [result for _, result in run_tasks(nap_tasks(2), 2, [], told.append, memory=[1 << 50] * 2)]
    assert most_at_once(results) == 1
    assert len(told) == 1 and "one at a time" in told[0]


def test_another_version_on_a_node_is_one_line(address: str, monkeypatch) -> None:
    here = dict(workers.versions())
    monkeypatch.setattr(workers, "versions", lambda: here | {"pillow": "0.1"})
    with ray_session(2, address), pytest.raises(OmniprepError) as caught:
        list(run_tasks(nap_tasks(1), 2, [], print))
    assert f"pillow {here['pillow']} (the driver has 0.1)" in str(caught.value) and "\n" not in str(caught.value)


def test_a_package_that_a_node_lacks_is_one_line(address: str, monkeypatch) -> None:
    module = types.ModuleType("only_on_the_driver")
    exec("class Task:\n    out, fence, isolate = '', None, False\n    def run(self): return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_on_the_driver", module)
    with ray_session(2, address), pytest.raises(OmniprepError) as caught:
        list(run_tasks([module.Task()], 2, [], print))
    assert "has no package only_on_the_driver" in str(caught.value) and "\n" not in str(caught.value)


def test_another_version_of_ray_is_one_line(address: str, monkeypatch) -> None:
    import ray

    monkeypatch.setattr(ray, "__version__", "2.39.0")
    with ray_session(2, address), pytest.raises(OmniprepError) as caught:
        list(run_tasks(nap_tasks(1), 2, [], print))
    assert "Version mismatch" in str(caught.value) and "2.39.0" in str(caught.value)
    assert "\n" not in str(caught.value)
