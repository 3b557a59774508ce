"""How many cores may be used, as the control groups of both versions tell."""

from __future__ import annotations

import os

import pytest

from evloop.program.workers.cores import cgroup_quota, usable_cores


def group(root, path, **files):
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def member(root, text):
    group(root, "proc/self", cgroup=text)


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("50000 100000\n", 0.5), ("rubbish", None)]
)
def test_version_2(tmp_path, limit, cores):
    member(tmp_path, "0::/system.slice/x.service\n")
    group(tmp_path, "sys/fs/cgroup/system.slice/x.service", cpu__max=limit)
    assert cgroup_quota(tmp_path) == cores


def test_a_group_above_may_allow_less(tmp_path):
    member(tmp_path, "0::/a/b\n")
    group(tmp_path, "sys/fs/cgroup/a/b", cpu__max="400000 100000")
    group(tmp_path, "sys/fs/cgroup/a", cpu__max="200000 100000")
    assert cgroup_quota(tmp_path) == 2


def test_in_a_container_the_files_are_at_the_top(tmp_path):
    member(tmp_path, "0::/docker/0123\n")
    group(tmp_path, "sys/fs/cgroup", cpu__max="300000 100000")
    assert cgroup_quota(tmp_path) == 3


@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("250000", 2.5)])
@pytest.mark.parametrize("mounted", ["cpu,cpuacct", "cpu"])
def test_version_1(tmp_path, quota, cores, mounted):
    member(tmp_path, "12:memory:/x\n4:cpu,cpuacct:/x\n0::/\n")
    group(tmp_path, f"sys/fs/cgroup/{mounted}/x", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert cgroup_quota(tmp_path) == cores


def test_without_groups_all_cores_of_the_process_count(tmp_path):
    assert cgroup_quota(tmp_path) is None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert usable_cores(tmp_path) == cores


def test_part_of_a_core_is_one_and_never_more_than_there_are(tmp_path):
    member(tmp_path, "0::/\n")
    group(tmp_path, "sys/fs/cgroup", cpu__max="10000 100000")
    assert usable_cores(tmp_path) == 1
    group(tmp_path, "sys/fs/cgroup", cpu__max="900000000 100000")
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "nowhere")
