"""Holds the manifests of `rlhf submit --to kubernetes --dry-run` to the schemas that Kubernetes publishes (strictly: no key
that they do not know), and what the schemas cannot say to itself: names, and what refers to what.

    python validate.py RLHF
"""

import copy
import json
import pathlib
import subprocess
import sys
import tempfile

import kubernetes_validate

HERE = pathlib.Path(__file__).parent
TINY = HERE.parent.parent / "experiments/tiny/pipeline.toml"
# The first in which all that is used is stable or beta and on, and the newest.
VERSIONS = ["1.31", "1.37"]
VARIANTS = {
    "as it is": [],
    "an account that is there": ["--set", "cluster.kubernetes.service_account=trainer"],
    "all in a queue": ["--set", "cluster.kubernetes.queue=team-queue"],
    "seeds": ["--seeds", "1,2"],
    "a stage whose name is none": ["--run-dir", "/shared/7B_" + "long" * 20],
    "one node, as little as may be": ["--set", "cluster.kubernetes.nodes=1", "--set", "cluster.kubernetes.ranks_per_node=1"],
}


def manifests(rlhf, options):
    text = TINY.read_text() + (HERE / "cluster.toml").read_text()
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "pipeline.toml"
        config.write_text(text)
        where = [] if "--run-dir" in options else ["--run-dir", "/shared/tiny"]
        command = [rlhf, "submit", config, "--to", "kubernetes", "--dry-run", *where, *options]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    found = json.loads(out)
    assert (found["apiVersion"], found["kind"]) == ("v1", "List")
    return found["items"]


def check_schemas(objects):
    for found in objects:
        for version in VERSIONS:
            kubernetes_validate.validate(found, version, strict=True)


def check_references(objects):
    names = {(found["kind"], found["metadata"]["name"]) for found in objects}
    assert len(names) == len(objects), "two objects have one name"
    assert {found["metadata"]["namespace"] for found in objects} == {"team"}
    (run,) = {found["metadata"]["labels"]["rlhf/run"] for found in objects}
    jobs = [found for found in objects if found["kind"] == "Job"]
    conductors = 0
    for job in jobs:
        name, spec = job["metadata"]["name"], job["spec"]
        pod = spec["template"]["spec"]
        notes = job["metadata"].get("annotations", {})
        if "rlhf/stage" not in notes:
            conductors += 1
            assert pod["containers"][0]["args"] == ["conduct", run, "--namespace", "team"]
            account = pod["serviceAccountName"]
            assert account == "trainer" or {("ServiceAccount", account), ("Role", account), ("RoleBinding", account)} <= names
            continue
        # A pod's host name is one label of the domain name system.
        assert len(f"{name}-{spec['completions'] - 1}") <= 63
        assert spec["completions"] == spec["parallelism"]
        several = spec["completions"] > 1
        assert several == (("Service", name) in names) == (pod.get("subdomain") == name)
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert ("ConfigMap", volumes["plan"]["configMap"]["name"]) in names
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == set(volumes)
        after = [name for name in notes.get("rlhf/after", "").split(",") if name]
        assert all(("Job", other) in names for other in after), after
        queue = "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
        assert spec.get("suspend", False) == (bool(after) or queue)
        assert not (after and queue), "Kueue would begin it before its turn"
    assert conductors == 1


def check_that_faults_are_seen(objects):
    """A check that refuses nothing would pass, too."""

    def typo(job):
        job["spec"]["completion_mode"] = "Indexed"

    def kind(job):
        job["spec"]["completions"] = "2"

    def deep(job):
        job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]["mount"] = "/x"

    job = next(found for found in objects if found["kind"] == "Job")
    for fault in (typo, kind, deep):
        wrong = copy.deepcopy(job)
        fault(wrong)
        try:
            check_schemas([wrong])
        except kubernetes_validate.ValidationError:
            continue
        raise AssertionError(f"{fault.__name__} is not refused")


for variant, options in VARIANTS.items():
    objects = manifests(sys.argv[1], options)
    check_schemas(objects)
    check_references(objects)
    check_that_faults_are_seen(objects)
    print(f"{variant}: {len(objects)} objects are valid in {' and '.join(VERSIONS)}")
