"""Threads are bound to cores before torch is loaded, unless the user or the machine speaks against it."""

from __future__ import annotations

import os

import pytest
from processes import run_python

from sr_models import openmp

several_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")

THREADS = """
import os
from sr_models.openmp import bind_threads, unbind
bound = bind_threads()
import torch
(torch.randn(1000, 1000) @ torch.randn(1000, 1000)).sum()
torch.randn(10**7).mul(2).sum()
cores = [sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]
unbind()
print(bound, sorted(cores), torch.get_num_threads(), len(os.sched_getaffinity(0)))
"""
UNSET = dict.fromkeys(openmp.SETTINGS)


@several_cores
@pytest.mark.skipif(any(map(os.path.exists, openmp._GPUS)), reason="threads are not bound beside a GPU")
def test_every_thread_gets_a_core_of_its_own_and_processes_can_get_all_back():
    done = run_python(THREADS, **UNSET)
    bound, rest = done.stdout.strip().split(" ", 1)
    assert bound == "True", done.stderr
    places, threads, cores = rest.rsplit(" ", 2)
    assert int(cores) == len(os.sched_getaffinity(0))
    distinct = {tuple(place) for place in eval(places)}
    assert len(distinct) == int(threads)
    assert sum(map(len, distinct)) <= int(cores)


@pytest.fixture
def fresh(monkeypatch):
    """As before torch is loaded, on a machine with four cores and no GPU."""
    monkeypatch.delitem(openmp.sys.modules, "torch")
    monkeypatch.setattr(openmp, "_GPUS", ())
    monkeypatch.setattr(openmp, "_CORES", frozenset(range(4)))
    monkeypatch.setattr(openmp, "_siblings", lambda core: frozenset([core]))


@pytest.mark.usefixtures("fresh")
def test_each_process_begins_with_another_core(monkeypatch):
    found = []
    for process in (4, 5, 7):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        environment = {}
        assert openmp.bind_threads(environment)
        assert environment["OMP_PROC_BIND"] == "true"
        found.append(environment["OMP_PLACES"])
    assert found == ["{0},{1},{2},{3}", "{1},{2},{3},{0}", "{3},{0},{1},{2}"]


@pytest.mark.usefixtures("fresh")
def test_hardware_threads_of_a_core_are_one_place(monkeypatch):
    monkeypatch.setattr(openmp, "_siblings", lambda core: frozenset([core % 2, core % 2 + 2]))
    monkeypatch.setattr(os, "getpid", lambda: 0)
    environment = {}
    assert openmp.bind_threads(environment)
    assert environment["OMP_PLACES"] == "{0,2},{1,3}"


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", openmp.SETTINGS)
def test_what_the_user_set_stays(name):
    environment = {name: "1"}
    assert not openmp.bind_threads(environment)
    assert environment == {name: "1"}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("attribute", ["_GPUS", "_CORES"])
def test_nothing_is_bound_beside_a_gpu_or_on_one_core(attribute, monkeypatch):
    monkeypatch.setattr(openmp, attribute, {"_GPUS": ("/dev/null",), "_CORES": frozenset([3])}[attribute])
    environment = {}
    assert not openmp.bind_threads(environment)
    assert environment == {}


def test_nothing_is_bound_once_torch_is_loaded():
    import torch  # noqa: F401

    assert not openmp.bind_threads({})


@pytest.mark.parametrize(("text", "expected"), [("2-3,6-7\n", {2, 3, 6, 7}), ("2,6\n", {2, 6}), ("2\n", {2})])
def test_the_kernel_says_which_threads_share_a_core(monkeypatch, text, expected):
    monkeypatch.setattr(openmp.Path, "read_text", lambda path: text)
    assert openmp._siblings(2) == expected
