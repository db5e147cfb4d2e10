"""The manifests for Kubernetes: right by its schemas, and tasks that find each other by them."""

import json
import pathlib

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tfscale import command_line, fit
from tfscale.cluster import environment

HERE = pathlib.Path(__file__).parent
FOLDER = HERE.parents[1] / "docker/deploy/kubernetes"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
VERSIONS = ("1.31", "1.37")


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def the(kind, name):
    return next(found for found in documents(name) if found["kind"] == kind)


def templates():
    """Yield the pod template of each workload, with a name for a test."""
    yield "job", the("Job", "job.yaml")["spec"]["template"]
    yield "tensorboard", the("Deployment", "tensorboard.yaml")["spec"]["template"]
    for role, replica in the("TFJob", "tfjob.yaml")["spec"]["tfReplicaSpecs"].items():
        yield role, replica["template"]


def tasks():
    return [(name, template) for name, template in templates() if name != "tensorboard"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FILES)
def test_manifests_are_right_by_the_schemas_of_kubernetes(name, version):
    for document in documents(name):
        if document["kind"] == "TFJob":
            jsonschema.validate(document, json.loads((HERE / "tfjob_schema.json").read_text()))
            for replica in document["spec"]["tfReplicaSpecs"].values():
                pod = {"apiVersion": "v1", "kind": "Pod", **replica["template"]}
                kubernetes_validate.validate(pod, version, strict=True)
        else:
            kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_is_found():
    job = the("Job", "job.yaml")
    job["spec"]["backofLimit"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(("name", "template"), list(templates()), ids=lambda value: str(value)[:11])
def test_pods_have_no_more_rights_than_they_need(name, template):
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert not pod["automountServiceAccountToken"] and not pod["enableServiceLinks"]
    assert "hostNetwork" not in pod
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] and rights["capabilities"] == {"drop": ["ALL"]}
        assert rights["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"]["memory"]
        assert "hostPort" not in str(container.get("ports"))


@pytest.mark.parametrize(("name", "template"), tasks(), ids=lambda value: str(value)[:11])
def test_what_a_task_is_told_is_a_command_of_fit(name, template):
    pod = template["spec"]
    command, *flags = pod["containers"][0]["args"]
    assert command == "fit" and pod["containers"][0]["name"] == "tensorflow"
    values = command_line.parse(flags, fit.USAGE, fit._define_flags)
    assert values.strategy == "multiworker" and values.run_dir == "runs/digits"
    assert values.max_restarts == 5
    assert pod["terminationGracePeriodSeconds"] > values.grace_seconds


@pytest.mark.parametrize(("name", "template"), list(templates()), ids=lambda value: str(value)[:11])
def test_the_runs_are_one_volume_that_all_see(name, template):
    claim = the("PersistentVolumeClaim", "volume.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    found = volumes["runs"]["persistentVolumeClaim"]
    assert found["claimName"] == claim["metadata"]["name"]
    mounts = template["spec"]["containers"][0]["volumeMounts"]
    paths = {mount["name"]: mount for mount in mounts}
    assert paths["runs"]["mountPath"] == "/work/runs"
    assert paths["runs"].get("readOnly", False) == (name == "tensorboard")


def test_the_tasks_of_an_indexed_job_find_each_other():
    job = the("Job", "job.yaml")
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    service = the("Service", "job.yaml")
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert pod["subdomain"] == service["metadata"]["name"]
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    given = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    for index in range(spec["completions"]):
        cluster = environment.resolve({**given, "JOB_COMPLETION_INDEX": str(index)})
        assert cluster.rank == index and cluster.num_workers == spec["completions"]
        # Kubernetes gives pod INDEX of an indexed Job the host name JOB-INDEX.
        assert cluster.workers[index] == f"{name}-{index}.{pod['subdomain']}:2222"


def as_the_operator_sets_it(job, role, index, **replicas):
    """TF_CONFIG of one task of a TFJob, with more replicas than the file has where given.

    A Service a task; an evaluator is no part of the cluster; and a key of the operator's own.
    """
    specs = job["spec"]["tfReplicaSpecs"]
    counts = {name.lower(): replica["replicas"] for name, replica in specs.items()} | replicas
    cluster = {
        name: [f"{job['metadata']['name']}-{name}-{i}.training.svc:2222" for i in range(number)]
        for name, number in counts.items()
        if name != "evaluator"
    }
    task = {"type": role, "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task, "environment": "cloud"})}


def test_the_tasks_of_a_tfjob_find_each_other():
    job = the("TFJob", "tfjob.yaml")
    specs = job["spec"]["tfReplicaSpecs"]
    tasks = [
        (name.lower(), index)
        for name, replica in specs.items()
        for index in range(replica["replicas"])
    ]
    assert len(tasks) == 4
    ranks = []
    for role, index in tasks:
        found = environment.resolve(as_the_operator_sets_it(job, role, index))
        assert found.num_workers == len(tasks) and not found.has_evaluator
        assert found.workers[found.rank] == f"digits-{role}-{index}.training.svc:2222"
        assert found.is_chief == (role == "chief")
        ranks.append(found.rank)
    assert sorted(ranks) == list(range(len(tasks)))


def test_an_evaluator_of_a_tfjob_stands_beside_the_workers():
    job = the("TFJob", "tfjob.yaml")
    found = environment.resolve(as_the_operator_sets_it(job, "evaluator", 0, evaluator=1))
    assert found.is_evaluator and found.num_workers == 4 and not found.is_chief


def test_parameter_servers_of_a_tfjob_are_refused():
    job = the("TFJob", "tfjob.yaml")
    with pytest.raises(ValueError, match="no parameter servers"):
        environment.resolve(as_the_operator_sets_it(job, "worker", 0, ps=2))


def test_twelve_workers_of_a_tfjob_are_ranked_by_their_index():
    job = the("TFJob", "tfjob.yaml")
    found = environment.resolve(as_the_operator_sets_it(job, "worker", 10, worker=12))
    assert found.rank == 11 and found.num_workers == 13


def test_a_tfjob_restarts_a_worker_that_lost_another():
    for replica in the("TFJob", "tfjob.yaml")["spec"]["tfReplicaSpecs"].values():
        assert replica["restartPolicy"] == "OnFailure"  # ExitCode takes 1 for final


def action_for(code, disrupted=False):
    """What the Job does about a pod that ended so: the first rule that fits, or a count."""
    for rule in the("Job", "job.yaml")["spec"]["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["operator"] == "In"
            if code in rule["onExitCodes"]["values"]:
                return rule["action"]
        else:
            [condition] = rule["onPodConditions"]
            assert condition == {"type": "DisruptionTarget", "status": "True"}
            if disrupted:
                return rule["action"]
    return "Count"


@pytest.mark.parametrize(
    ("code", "disrupted", "action"),
    [
        (2, False, "FailJob"),  # cannot be run as it was typed
        (143, False, "Ignore"),  # told to leave, has saved
        (137, True, "Ignore"),  # evicted, and not out in time
        (1, False, "Count"),
        (124, False, "Count"),
        (134, False, "Count"),
        (137, False, "Count"),  # killed: memory, or by hand
    ],
)
def test_an_indexed_job_does_about_an_exit_code_what_clusters_md_says(code, disrupted, action):
    spec = the("Job", "job.yaml")["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # as podFailurePolicy needs
    assert spec["backoffLimit"] > 0
    names = [container["name"] for container in spec["template"]["spec"]["containers"]]
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule.get("onExitCodes", {"containerName": "tensorflow"})["containerName"] in names
    assert action_for(code, disrupted) == action


def test_network_policies_select_the_pods_and_let_tasks_talk_to_tasks_only():
    policies = {
        found["metadata"]["name"]: found["spec"] for found in documents("network-policy.yaml")
    }
    task, board = policies["tfscale-tasks"], policies["tfscale-tensorboard"]
    for name, template in templates():
        policy = board if name == "tensorboard" else task
        assert (
            policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        )
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    [ingress] = task["ingress"]
    assert ingress["from"] == [{"podSelector": task["podSelector"]}]
    ports = [[port["port"] for port in rule.get("ports", [])] for rule in task["egress"]]
    assert task["egress"][0]["to"] == ingress["from"] and ports == [[], [53, 53]]
    assert "ingress" not in board and "egress" not in board
