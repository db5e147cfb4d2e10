"""Clusters from one list of hosts, and who finds itself where in it."""

import json

import pytest

from tfscale.cluster import environment, hosts


class Names:
    """Names that come and go with a clock that nobody waits for."""

    def __init__(self, **since):
        self.since = since
        self.now = 0.0

    def lookup(self, address):
        host = address.rpartition(":")[0].replace("-", "_")
        begins, ends = self.since.get(host, (1e9, 0))
        return (f"10.0.0.{host}",) if begins <= self.now < ends else ()

    def sleep(self, seconds):
        self.now += seconds

    def tasks(self, text, own, **more):
        return hosts.tasks(
            {"TFSCALE_HOSTS": text, **more},
            self.lookup,
            lambda ip: ip == f"10.0.0.{own}",
            lambda: self.now,
            self.sleep,
        )


FOR_EVER = (0, 1e9)


def test_without_the_variable_there_is_no_cluster():
    assert hosts.tasks({}) is None and hosts.tasks({"TFSCALE_HOSTS": " "}) is None


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("a", ("a:2222",)),
        ("a:1,b:2", ("a:1", "b:2")),
        ("a, n[1-3]:7", ("a:2222", "n1:7", "n2:7", "n3:7")),
        ("job-[9-11].svc", ("job-9.svc:2222", "job-10.svc:2222", "job-11.svc:2222")),
        ("[::1]:5", None),
        ("n[1-", None),
        (",", None),
        ("n[1-2]:[3-4]", None),
        ("a:x", None),
    ],
)
def test_lists_of_hosts(text, addresses):
    if addresses is None:
        with pytest.raises(ValueError, match="Received: "):
            hosts.expand(text)
    else:
        assert hosts.expand(text) == addresses


def test_an_indexed_job_of_kubernetes_says_the_rank():
    environ = {"TFSCALE_HOSTS": "digits-[0-3].digits:2222", "JOB_COMPLETION_INDEX": "2"}
    cluster = environment.resolve(environ)
    assert cluster.workers == tuple(f"digits-{index}.digits:2222" for index in range(4))
    assert (cluster.rank, cluster.is_chief, cluster.source) == (2, False, "hosts")
    config = json.loads(cluster.tf_config())
    assert config["task"] == {"type": "worker", "index": 2}
    assert config["cluster"]["worker"] == list(cluster.workers)


def test_a_rank_of_ones_own_goes_before_kubernetes():
    found = hosts.tasks({"TFSCALE_HOSTS": "a,b", "TFSCALE_RANK": "1", "JOB_COMPLETION_INDEX": "0"})
    assert found.rank == 1


@pytest.mark.parametrize("text", ["3", "-1", "x"])
def test_a_rank_outside_of_the_list_is_refused(text):
    with pytest.raises(ValueError, match="JOB_COMPLETION_INDEX must be a task's place.*3 hosts"):
        hosts.tasks({"TFSCALE_HOSTS": "n[0-2]", "JOB_COMPLETION_INDEX": text})


def test_a_task_finds_itself_by_the_address_of_its_machine():
    names = Names(a=FOR_EVER, b=FOR_EVER)
    assert names.tasks("a,b", own="b") == hosts.Tasks(("a:2222", "b:2222"), 1)


def test_a_machine_that_is_not_in_the_list_is_refused():
    names = Names(a=FOR_EVER, b=FOR_EVER)
    with pytest.raises(ValueError, match="Received: a:2222, b:2222, of which none.*TFSCALE_RANK"):
        names.tasks("a,b", own="c")
    assert names.now >= 15  # a name may come a moment later


def test_two_tasks_of_one_machine_must_say_which_they_are():
    names = Names(a=FOR_EVER)
    with pytest.raises(ValueError, match="Only one host.*a:1, a:2"):
        names.tasks("a:1,a:2", own="a")
    assert names.tasks("a:1,a:2", own="a", TFSCALE_RANK="1").rank == 1


class TestAnOpenRange:
    """`w-[1-2+]`: as many as there are when the first host has its name."""

    text = "t,w-[1-2+]:7"

    def test_waits_for_the_first_host_and_counts_then(self):
        names = Names(t=(30, 1e9), w_1=FOR_EVER, w_2=FOR_EVER, w_3=(20, 1e9), w_4=(20, 1e9))
        found = names.tasks(self.text, own="w_4")
        assert found.addresses == ("t:2222", "w-1:7", "w-2:7", "w-3:7", "w-4:7")
        assert found.rank == 4 and 30 <= names.now < 31

    def test_waits_for_those_that_are_expected(self):
        names = Names(t=FOR_EVER, w_1=(8, 1e9), w_2=(3, 1e9))
        assert names.tasks(self.text, own="t").addresses == ("t:2222", "w-1:7", "w-2:7")
        assert 8 <= names.now < 9

    def test_a_place_in_the_middle_is_kept_for_one_that_is_missing(self):
        names = Names(t=FOR_EVER, w_2=FOR_EVER)
        assert names.tasks(self.text, own="t").addresses == ("t:2222", "w-1:7", "w-2:7")

    @pytest.mark.parametrize(
        ("there", "addresses"),
        [({"w_1": FOR_EVER}, ("t:2222", "w-1:7")), ({}, ("t:2222",))],
    )
    def test_goes_on_with_fewer(self, there, addresses):
        assert Names(t=FOR_EVER, **there).tasks(self.text, own="t").addresses == addresses

    def test_none_may_be_expected(self):
        assert Names(t=FOR_EVER).tasks("t,w-[1-0+]", own="t").addresses == ("t:2222",)
        more = Names(t=FOR_EVER, w_1=FOR_EVER)
        assert more.tasks("t,w-[1-0+]", own="t").addresses == ("t:2222", "w-1:2222")

    @pytest.mark.parametrize("text", ["t,w-[1-2+]:7", "w-[1-2+],x"])
    def test_a_task_without_a_name_in_it_does_not_wait_for_the_first_host(self, text):
        names = Names(w_2=FOR_EVER, w_3=FOR_EVER, x=FOR_EVER)
        with pytest.raises(ValueError, match="must be this machine.*--use-aliases"):
            names.tasks(text, own="run")
        assert 15 <= names.now < 25

    def test_a_task_that_says_its_rank_may_have_another_name(self):
        names = Names(t=(200, 1e9), w_1=FOR_EVER, w_2=FOR_EVER)
        assert names.tasks(self.text, own="other", TFSCALE_RANK="2").rank == 2

    def test_a_name_server_that_knows_every_name_adds_no_task(self):
        names = Names(t=FOR_EVER, w_1=FOR_EVER, w_2=FOR_EVER, w_3=FOR_EVER)
        lookup = names.lookup
        names.lookup = lambda address: lookup(address) or ("192.0.2.1",)
        tasks = names.tasks(self.text, own="w_2")
        assert (len(tasks.addresses), tasks.rank) == (5, 2)  # one of them by the wrong address

    def test_a_first_host_that_does_not_come_is_named(self):
        with pytest.raises(ValueError, match="must be found within 300 seconds. Received: t:2222"):
            Names(w_1=FOR_EVER).tasks(self.text, own="w_1")


def test_hosts_go_before_slurm_and_behind_tf_config():
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": "0",
    }
    listed = {"TFSCALE_HOSTS": "a,b", "TFSCALE_RANK": "1"}
    config = {"cluster": {"worker": ["c:1"]}, "task": {"type": "worker", "index": 0}}
    assert environment.resolve(slurm | listed).source == "hosts"
    given = slurm | listed | {"TF_CONFIG": json.dumps(config)}
    assert environment.resolve(given).workers == ("c:1",)


def test_an_address_twice_is_refused():
    with pytest.raises(ValueError, match="TFSCALE_HOSTS must give every task its own address"):
        environment.resolve({"TFSCALE_HOSTS": "a,a", "TFSCALE_RANK": "0"})
