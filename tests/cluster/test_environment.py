"""Clusters as schedulers describe them, and every description that must be refused."""

import json
import subprocess
import sys

import pytest

from tfscale.cluster import environment, slurm


def _tf_config(cluster, task_type, index):
    return {
        "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": task_type, "index": index}})
    }


def _step(nodes, tasks_per_node, num_tasks, rank, **more):
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "SLURM_STEP_NUM_TASKS": str(num_tasks),
        "SLURM_PROCID": str(rank),
        **more,
    }


def _hosts(cluster):
    return [address.rpartition(":")[0] for address in cluster.workers]


def test_nothing_set_is_one_worker_and_the_chief():
    alone = environment.resolve({})
    assert alone.workers == () and alone.source == "none"
    assert (alone.rank, alone.num_workers, alone.is_chief, alone.has_evaluator) == (
        0,
        1,
        True,
        False,
    )
    assert alone.tf_config() == "{}"


def test_workers_are_ranked_as_listed():
    cluster = environment.resolve(_tf_config({"worker": ["a:1", "b:2"]}, "worker", 1))
    assert cluster.workers == ("a:1", "b:2")
    assert (cluster.rank, cluster.num_workers, cluster.is_chief) == (1, 2, False)


def test_chief_comes_before_the_workers():
    jobs = {"worker": ["a:1", "b:1"], "chief": ["c:1"]}
    chief = environment.resolve(_tf_config(jobs, "chief", 0))
    last = environment.resolve(_tf_config(jobs, "worker", 1))
    assert chief.workers == last.workers == ("c:1", "a:1", "b:1")
    assert (chief.rank, chief.is_chief, last.rank, last.is_chief) == (0, True, 2, False)


def test_a_quoted_index_is_read():
    assert environment.resolve(_tf_config({"worker": ["a:1", "b:1"]}, "worker", "1")).rank == 1


@pytest.mark.parametrize("listed", [{}, {"evaluator": ["e:1"]}])
def test_evaluator_is_no_worker(listed):
    cluster = environment.resolve(_tf_config({"chief": ["a:1"], **listed}, "evaluator", 0))
    assert cluster.is_evaluator and cluster.has_evaluator and not cluster.is_chief
    assert (cluster.rank, cluster.num_workers) == (-1, 1)


def test_tf_config_is_handed_on_as_given():
    given = _tf_config({"chief": ["a:1"], "worker": ["b:1"]}, "worker", 0)
    assert environment.resolve(given).tf_config() == given["TF_CONFIG"]


def test_tf_config_goes_before_slurm():
    both = _step("n1,n2", "1(x2)", 2, 0) | _tf_config({"worker": ["a:1"]}, "worker", 0)
    assert environment.resolve(both).source == "tf_config"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{worker", "must be JSON.*Received: '{worker'"),
        ("[]", "must have a `cluster`"),
        ('{"task": {"type": "worker", "index": 0}}', "must have a `cluster`"),
        ('{"cluster": {"worker": ["a:1"]}}', "must have a `task`"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}', "must have a `task`"),
        ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}', "list of str"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "host:port"),
        ('{"cluster": {"worker": ["a:x"]}, "task": {"type": "worker", "index": 0}}', "host:port"),
        ('{"cluster": {"worker": ["a:0"]}, "task": {"type": "worker", "index": 0}}', "host:port"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "index 1"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}', "index=-1"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "one of its"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "master", "index": 0}}', "'master'"),
        ('{"cluster": {"gpu": ["a:1"]}, "task": {"type": "worker", "index": 0}}', "'gpu'"),
        (
            '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
            "'ps'",
        ),
        (
            '{"cluster": {"evaluator": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}',
            "at least",
        ),
        (
            '{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}',
            "one chief only",
        ),
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
            "a:1 more than once",
        ),
        (
            '{"cluster": {"chief": ["a:1"], "worker": ["a:1"]}, '
            '"task": {"type": "chief", "index": 0}}',
            "a:1 more than once",
        ),
    ],
)
def test_damaged_tf_config_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as refused:
        environment.resolve({"TF_CONFIG": text})
    assert "Received: " in str(refused.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("host", ["host"]),
        ("n[01-03,7],gpu2", ["n01", "n02", "n03", "n7", "gpu2"]),
        ("a,b-[9-11]", ["a", "b-9", "b-10", "b-11"]),
        ("r[1-2]n[08-09]-ib", ["r1n08-ib", "r1n09-ib", "r2n08-ib", "r2n09-ib"]),
        ("n[099-101]", ["n099", "n100", "n101"]),
    ],
)
def test_node_lists(text, names):
    assert slurm.expand_nodes(text) == names


@pytest.mark.parametrize("text", ["n[1-", "n[a-b]", "n[3-1]", "n1]", "n[[1]", "n[]", ""])
def test_unreadable_node_list_is_refused(text):
    with pytest.raises(ValueError, match="node list must read like"):
        slurm.expand_nodes(text)


def test_tasks_per_node_with_repeats():
    assert slurm.expand_counts("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(ValueError, match="tasks per node must read like"):
        slurm.expand_counts("2x3")


def test_two_tasks_on_one_slurm_node_have_two_ports():
    cluster = environment.resolve(_step("n1", "2", 2, 1))
    ports = [int(address.split(":")[1]) for address in cluster.workers]
    assert _hosts(cluster) == ["n1", "n1"] and ports[1] == ports[0] + 1
    assert 20_000 <= ports[0] < 32_000
    assert (cluster.rank, cluster.source) == (1, "slurm")
    made = json.loads(cluster.tf_config())
    assert made["task"] == {"type": "worker", "index": 1}
    assert made["cluster"]["worker"] == list(cluster.workers)


def test_every_slurm_task_sees_the_same_workers():
    seen = {environment.resolve(_step("n[1-2]", "1(x2)", 2, rank)).workers for rank in (0, 1)}
    assert len(seen) == 1


def test_twelve_slurm_nodes_keep_the_order_of_the_node_list():
    cluster = environment.resolve(_step("n[1-12]", "1(x12)", 12, 9))
    assert _hosts(cluster) == [f"n{i}" for i in range(1, 13)]
    assert cluster.workers[cluster.rank].startswith("n10:")


def test_mixed_node_names_with_several_tasks_a_node_keep_their_order():
    nodes, counts = "rack-2-n[9-11],gpu[08-10],login1", "2(x3),1,3(x2),1"
    clusters = [environment.resolve(_step(nodes, counts, 14, rank)) for rank in range(14)]
    expected = ["rack-2-n9", "rack-2-n10", "rack-2-n11"]
    expected = [name for name in expected for _ in range(2)]
    expected += ["gpu08", *["gpu09"] * 3, *["gpu10"] * 3, "login1"]
    assert _hosts(clusters[0]) == expected
    assert {cluster.workers for cluster in clusters} == {clusters[0].workers}
    assert [cluster.rank for cluster in clusters] == list(range(14))
    assert len(set(clusters[0].workers)) == 14  # tasks of one node differ in their ports


def test_uneven_slurm_tasks_and_a_given_port():
    step = _step(
        "n[01-02],g", "2,1,3", 6, 5, TFSCALE_PORT="5000", SLURM_NODEID="2", SLURM_LOCALID="2"
    )
    cluster = environment.resolve(step)
    assert cluster.workers == ("n01:5000", "n01:5001", "n02:5000", "g:5000", "g:5001", "g:5002")


def test_job_variables_serve_where_the_step_has_none():
    step = _step("", "", 2, 0, SLURM_JOB_NODELIST="n[1-2]", SLURM_TASKS_PER_NODE="1(x2)")
    assert _hosts(environment.resolve(step)) == ["n1", "n2"]


def test_jobs_and_steps_use_different_ports():
    variants = [("4711", "0"), ("4711", "1"), ("4712", "0")]
    first = {
        environment.resolve(_step("n1", "2", 2, 0, SLURM_JOB_ID=job, SLURM_STEP_ID=step)).workers
        for job, step in variants
    }
    assert len(first) == 3


def test_a_single_slurm_task_and_a_batch_script_are_no_cluster():
    assert environment.resolve(_step("n1", "1", 1, 0)).source == "none"
    batch = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
    assert environment.resolve(batch | {"SLURM_PROCID": "0"}).source == "none"


def test_a_step_of_one_task_in_a_larger_job_is_no_cluster():
    # As `srun --overlap -n1` in a job of two nodes and three tasks sets them.
    step = _step("n1", "1", 1, 0, SLURM_JOB_NODELIST="n[1-2]", SLURM_JOB_NUM_NODES="2")
    assert environment.resolve(step | {"SLURM_NTASKS": "1"}).source == "none"


def test_a_shell_in_an_allocation_is_no_cluster_and_is_told_of_srun(capsys):
    # As `salloc -N2 -n3` sets them; sbatch sets SLURM_PROCID besides.
    shell = {
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS": "3",
        "SLURM_TASKS_PER_NODE": "2,1",
    }
    for environ in (shell, shell | {"SLURM_PROCID": "0"}):
        assert environment.resolve(environ).source == "none"
        assert slurm.without_srun(environ) == "in a Slurm job of 3 tasks, without srun"
    # Where `salloc` starts its shell as a step of its own (LaunchParameters=use_interactive_step).
    own = _step("n1", "1", 1, 0, SLURM_STEP_ID="4294967290")
    assert environment.resolve(own | shell).source == "none"
    assert slurm.without_srun(own | shell) == "in a Slurm job of 3 tasks, without srun"
    slurm.warn_without_srun(shell)
    assert "Put `srun` in front of the command" in capsys.readouterr().err
    nodes = {name: text for name, text in shell.items() if name != "SLURM_NTASKS"}
    assert slurm.without_srun(nodes) == "in a Slurm job of 2 nodes, without srun"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "5", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1"},
        _step("n1", "1", 1, 0, SLURM_JOB_NUM_NODES="2"),
        _step("n[1-2]", "1(x2)", 2, 1),
    ],
)
def test_nobody_else_is_told_of_srun(environ, capsys):
    slurm.warn_without_srun(environ)
    assert slurm.without_srun(environ) == "" and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, "must describe one step"),
        ({"SLURM_STEP_NUM_TASKS": "3"}, "must describe one step"),
        ({"SLURM_PROCID": "2"}, "below the number of tasks"),
        ({"SLURM_PROCID": "one"}, "whole number"),
        ({"SLURM_STEP_NODELIST": "", "SLURM_JOB_NODELIST": ""}, "must set SLURM_STEP_NODELIST"),
        ({"SLURM_STEP_NODELIST": "n1,n1"}, "own address"),
        ({"TFSCALE_PORT": "65536"}, "TFSCALE_PORT=65536"),
        ({"TFSCALE_PORT": "0"}, "TFSCALE_PORT=0"),
        ({"SLURM_NODEID": "1"}, "--distribution=block"),
    ],
)
def test_contradictory_slurm_step_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        environment.resolve(_step("n[1-2]", "1(x2)", 2, 0) | change)


def test_importing_the_cluster_imports_no_heavy_package():
    code = (
        "import sys, tfscale.cluster.environment, tfscale.cluster.local, "
        "tfscale.cluster.rendezvous, tfscale.cluster.ports\n"
        "print(sorted({'tensorflow', 'numpy', 'keras'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
