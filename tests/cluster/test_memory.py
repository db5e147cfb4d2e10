"""What control groups of either version say about memory."""

import pytest

from tfscale.cluster import memory, verdict
from tfscale.cluster.pulse import Beat

NO_BEAT = Beat(0, 0, False, False, False, -1, -1, 0.0, "start")


def group(root, path, limit, kills, version):
    folder = root / ("memory" if version == 1 else "") / path
    folder.mkdir(parents=True, exist_ok=True)
    limit_file, kills_file = {
        1: ("memory.limit_in_bytes", "memory.oom_control"),
        2: ("memory.max", "memory.events"),
    }[version]
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / kills_file).write_text(f"oom 7\noom_kill {kills}\noom_group_kill 9\n")


def own(folder, version, path):
    file = folder / "own"
    file.write_text(f"3:cpuset:/\n4:memory:{path}\n0::/\n" if version == 1 else f"0::{path}\n")
    return file


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_around_and_the_kills_within(tmp_path, version):
    group(tmp_path, "", 800, 5, version)
    group(tmp_path, "job", 300, 4, version)
    group(tmp_path, "job/step", 500, 3, version)
    found = memory.read(tmp_path, own(tmp_path, version, "/job/step"))
    assert found == memory.Memory(limit_bytes=300, num_kills=3)


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_sees_its_own_group_at_the_top(tmp_path, version):
    group(tmp_path, "", 256 << 20, 1, version)
    found = memory.read(tmp_path, own(tmp_path, version, "/docker/0123"))
    assert found == memory.Memory(limit_bytes=256 << 20, num_kills=1)
    assert "limit of 256 MiB" in found.ran_out()


@pytest.mark.parametrize(("version", "limit"), [(1, 9223372036854771712), (2, "max")])
def test_no_limit(tmp_path, version, limit):
    group(tmp_path, "", limit, 0, version)
    found = memory.read(tmp_path, own(tmp_path, version, "/"))
    assert found == memory.Memory() and "memory of this machine" in found.ran_out()


def test_a_machine_without_control_groups(tmp_path):
    assert memory.read(tmp_path, tmp_path / "none") == memory.Memory()


@pytest.mark.parametrize("ran_out", ["", memory.Memory(64 << 20, 1).ran_out()])
def test_a_report_tells_want_of_memory_from_a_kill(ran_out):
    end = verdict.End(1, -9, 0.0, False, (), None, NO_BEAT, ran_out=ran_out)
    assert ("limit of 64 MiB" in end.reason()) == bool(ran_out)
    assert ("from outside" in end.reason()) != bool(ran_out)
