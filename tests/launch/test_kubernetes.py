"""Kubernetes understands launch/kubernetes.yaml, and its Job does on each exit code what DESIGN promises."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.launch.parsers import LAUNCH, several_machines
from trainer.ranks import Rank

SPEC = (LAUNCH / "kubernetes.yaml").read_text()


def objects(text: str) -> dict[str, Any]:
    """By kind, each as the API server's own schema has it. Raises what the validator does."""
    found = [document for document in yaml.safe_load_all(text) if document]
    for document in found:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    return {document["kind"]: document for document in found}


@pytest.fixture(scope="module")
def job() -> Any:
    return objects(SPEC)["Job"]["spec"]


def test_each_exit_code_is_answered_as_it_should_be(job: Any):
    rules = job["podFailurePolicy"]["rules"]

    def answer(code: int, *, disrupted: bool = False) -> str:
        for rule in rules:
            conditions = [c["type"] for c in rule.get("onPodConditions", [])]
            if disrupted and "DisruptionTarget" in conditions:
                return str(rule["action"])
            if code in rule.get("onExitCodes", {}).get("values", []):
                return str(rule["action"])
        return "counted"

    # Ignore: a new pod, not counted against backoffLimit
    assert {code: answer(code) for code in (74, 75, 76)} == {74: "Ignore", 75: "Ignore", 76: "Ignore"}
    assert {code: answer(code) for code in (64, 78)} == {64: "FailJob", 78: "FailJob"}
    assert {answer(code, disrupted=True) for code in (0, 1, 64, 75, 78, 137)} == {"Ignore"}
    assert answer(1) == "counted"
    # the names that the API server checks and the schema doesn't
    template = job["template"]["spec"]
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} == {"baton"}
    assert template["containers"][0]["name"] == "baton"
    assert template["restartPolicy"] == "Never"
    args = template["containers"][0]["args"]
    assert args[args.index("--superseded-exit-code") + 1] == "76"


def test_a_pod_has_time_to_save_runs_on_each_clouds_spot_nodes_and_is_locked_down(job: Any):
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > float(env["BATON_STOP_GRACE"])
    tolerated = {one["key"] for one in pod["tolerations"]}
    assert tolerated >= {
        "cloud.google.com/gke-spot",
        "eks.amazonaws.com/capacityType",
        "kubernetes.azure.com/scalesetpriority",
    }
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/halt"}


def test_its_variant_for_several_nodes_is_valid_too_and_its_pods_find_each_other():
    found = objects(several_machines(SPEC))
    job = found["Job"]["spec"]
    pod = job["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 2, 2)
    variables = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    index = next(one["valueFrom"] for one in pod["containers"][0]["env"] if one["name"] == "RANK")
    assert index["fieldRef"]["fieldPath"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    ranks = [Rank.of({**variables, "RANK": str(n)}) for n in range(job["completions"])]
    assert ranks == [Rank(0, 2), Rank(1, 2)], "one process in each pod"
    assert variables["MASTER_ADDR"] == f"{found['Job']['metadata']['name']}-0.{pod['subdomain']}"
    assert pod["subdomain"] == found["Service"]["metadata"]["name"]
    assert found["Service"]["spec"]["selector"].items() <= job["template"]["metadata"]["labels"].items()


def test_a_line_from_which_the_number_sign_is_taken_stands_in_its_place():
    def taken(key: str) -> dict[str, Any]:
        assert f" #{key}: " in SPEC
        return objects(SPEC.replace(f" #{key}: ", f" {key}: "))

    for key in ("iam.gke.io/gcp-service-account", "eks.amazonaws.com/role-arn", "azure.workload.identity/client-id"):
        assert list(taken(key)["ServiceAccount"]["metadata"]["annotations"]) == [key]
    template = taken("azure.workload.identity/use")["Job"]["spec"]["template"]
    assert template["metadata"]["labels"] == {"app": "baton", "azure.workload.identity/use": "true"}
    assert taken("hostNetwork")["Job"]["spec"]["template"]["spec"]["hostNetwork"] is True


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("backoffLimit: 4", "backoffLimits: 4"),
        ("terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: a minute"),
        ("action: FailJob", "onExit: FailJob"),
        ('{name: BATON_STOP_GRACE, value: "15"}', "{name: BATON_STOP_GRACE, value: 15}"),
        ("completions: 2", "completions: two"),
        ("fieldPath:", "field:"),
        ("publishNotReadyAddresses: true", "publishNotReadyAddresses: yes, all"),
    ],
)
def test_a_mistake_in_it_or_in_its_variant_for_several_nodes_is_found(right: str, wrong: str):
    spec = several_machines(SPEC)
    assert right in spec
    with pytest.raises(kubernetes_validate.ValidationError):
        objects(spec.replace(right, wrong))
