"""The Helm chart, rendered by Helm's own engine (its Go SDK in the package helm-python-sdk) and checked offline."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from support import helm
from support.commands import run_twinspire

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "twinspire"
_HELP: dict[str, str] = {}
KUBERNETES = ("1.29", "1.37")
"""The oldest version that Chart.yaml admits, and the newest whose schemas there are."""

EVERYTHING: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}],
    "bundle": {"existingClaim": "bundles", "path": "clip-best"},
    "triton": {
        "buildArgs": ["--precision", "int8"],
        "extraArgs": ["--canary-interval=10"],
        "autoscaling": {"enabled": True},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "search", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
    "gateway": {
        "servers": ["gpu.example.org:8001"],
        "keys": {"existingSecret": "search-keys", "entry": "clients.txt"},
        "index": {"existingClaim": "index", "path": "photos"},
        "pictures": {"existingClaim": "pictures"},
        "extraArgs": ["--rate=20"],
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "autoscaling": {"enabled": True},
    },
    "ingress": {"enabled": True, "className": "nginx", "host": "search.example.org", "tlsSecret": "certificate"},
    "networkPolicy": {
        "gatewayFrom": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
        "monitoringFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "gatewayEgress": [{"ports": [{"port": 8001}], "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}],
    },
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": EVERYTHING,
    "no Triton": {"triton": {"enabled": False}, "gateway": {"servers": ["gpu.example.org:8001"], "insecure": True}},
    "a repository": {"triton": {"repository": {"existingClaim": "models", "path": "clip"}}},
    "by CPU": {"triton": {"autoscaling": {"enabled": True, "metric": "cpu", "target": 80}}},
    "another store": {"gateway": {"index": {"uri": "qdrant://store:6333/photos"}}, "networkPolicy": {"enabled": False}},
}


def rendered(values: dict[str, Any], *, name: str = "demo") -> dict[tuple[str, str], Any]:
    """Render the chart; return its objects by kind and name."""
    files = helm.render(CHART, values, name=name, namespace="search")
    objects = [
        document
        for path, text in files.items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    found = {(document["kind"], document["metadata"]["name"]): document for document in objects}
    assert len(found) == len(objects)
    return found


def container(objects: dict[tuple[str, str], Any], kind: str, name: str) -> Any:
    """Return the one container of a workload."""
    (found,) = objects[kind, name]["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("case", CASES)
def test_all_objects_are_valid(case: str, kubernetes: str) -> None:
    """Every object is as Kubernetes' schemas say, without unknown fields."""
    objects = rendered(CASES[case])
    assert ("Deployment", "demo-twinspire-gateway") in objects
    for (kind, _), document in objects.items():
        if kind != "PodMonitor":  # Prometheus' operator brings its schema
            kubernetes_validate.validate(document, kubernetes, strict=True)


def test_a_wrong_field_is_found() -> None:
    """The check of the objects fails for a field that Kubernetes does not know."""
    document = rendered({})["Deployment", "demo-twinspire-gateway"]
    document["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES[1], strict=True)


@pytest.mark.parametrize(
    "values",
    [
        {"gatway": {}},
        {"gateway": {"replica": 2}},
        {"gateway": {"replicas": "2"}},
        {"gateway": {"replicas": 0}},
        {"gateway": {"servers": ["http://gpu:8001"]}},
        {"gateway": {"servers": "gpu:8001"}},
        {"gateway": {"keys": {"existingSecret": "My Secret"}}},
        {"gateway": {"index": {"path": "../other"}}},
        {"gateway": {"index": {"path": "/photos"}}},
        {"gateway": {"service": {"type": "ExternalName"}}},
        {"gateway": {"service": {"port": 70000}}},
        {"triton": {"sharedMemory": 256}},
        {"triton": {"autoscaling": {"metric": "gpu"}}},
        {"triton": {"autoscaling": {"metric": "cpu", "target": 1}}},
        {"triton": {"resources": {"request": {}}}},
        {"image": {"pullPolicy": "always"}},
        {"ingress": {"enabled": True}},
        {"podMonitor": {"interval": "often"}},
    ],
    ids=json.dumps,
)
def test_bad_values_are_refused(values: dict[str, Any]) -> None:
    """values.schema.json refuses them, to Helm and to a validator of JSON schemas alike."""
    own, merged = helm.merged_values(CHART, values)
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(own, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merged, schema)
    with pytest.raises(helm.RefusedByHelmError):
        rendered(values)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"triton": {"enabled": False}}, "gateway.servers"),
        ({"gateway": {"insecure": True, "keys": {"existingSecret": "keys"}}}, "gateway.insecure"),
        ({"gateway": {"index": {"existingClaim": "index", "uri": "qdrant://store/photos"}}}, "gateway.index"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any], word: str) -> None:
    """Where the schema cannot tell, rendering fails and names the value."""
    with pytest.raises(helm.RefusedByHelmError, match=word):
        rendered(values)


def test_lint_finds_no_fault() -> None:
    """`helm lint` has no error and no warning."""
    found = helm.lint(CHART)
    assert found["errors"] == []
    assert [message for message in found["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("case", CASES)
def test_pods_have_no_rights(case: str) -> None:
    """No pod is root, has a capability, writes to its image or gets a token of the cluster."""
    specs = [
        document["spec"]["template"]["spec"]
        for (kind, _), document in rendered(CASES[case]).items()
        if kind in ("Deployment", "StatefulSet")
    ]
    assert specs
    for spec in specs:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in [*spec.get("initContainers", ()), *spec["containers"]]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            names = {mount["name"] for mount in each["volumeMounts"]}
            assert names <= {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("case", CASES)
def test_selectors_match_their_pods_alone(case: str) -> None:
    """Services, budgets, policies and monitors select the pods of one workload, and their ports exist there."""
    objects = rendered(CASES[case])
    templates = {
        name: document["spec"]["template"]
        for (kind, name), document in objects.items()
        if kind in ("Deployment", "StatefulSet")
    }
    checked = 0
    for (kind, name), document in objects.items():
        spec = document["spec"] if kind not in ("Secret",) else {}
        match kind:
            case "Service":
                selector, ports = spec["selector"], [port["targetPort"] for port in spec["ports"]]
            case "PodDisruptionBudget":
                selector, ports = spec["selector"]["matchLabels"], []
            case "PodMonitor":
                selector = spec["selector"]["matchLabels"]
                ports = [endpoint["port"] for endpoint in spec["podMetricsEndpoints"]]
            case "NetworkPolicy":
                selector = spec["podSelector"]["matchLabels"]
                ports = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
            case _:
                continue
        matching = [
            workload
            for workload, template in templates.items()
            if selector.items() <= template["metadata"]["labels"].items()
        ]
        assert matching == [name], (kind, name)
        (only,) = templates[name]["spec"]["containers"]
        assert set(ports) <= {port["name"] for port in only["ports"]}, (kind, name)
        checked += 1
    assert checked >= 2


def test_probes_ask_for_ready_and_live() -> None:
    """Gateways and servers are ready by /readyz and alive by /livez, and have time to start."""
    objects = rendered({})
    for kind, name in (("Deployment", "demo-twinspire-gateway"), ("StatefulSet", "demo-twinspire-triton")):
        found = container(objects, kind, name)
        assert found["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert found["livenessProbe"]["httpGet"]["path"] == "/livez"
        start = found["startupProbe"]
        assert start["httpGet"]["path"] == "/livez"
        assert start["periodSeconds"] * start["failureThreshold"] >= 300


def test_gateways_know_each_server_by_name() -> None:
    """A gateway's --server are the pods of the StatefulSet, up to the most that autoscaling makes, and further ones."""
    objects = rendered({})
    arguments = container(objects, "Deployment", "demo-twinspire-gateway")["args"]
    service = objects["Service", "demo-twinspire-triton"]
    assert service["spec"]["clusterIP"] == "None"
    triton = objects["StatefulSet", "demo-twinspire-triton"]
    assert triton["spec"]["serviceName"] == "demo-twinspire-triton"
    names = [f"--server=demo-twinspire-triton-{number}.demo-twinspire-triton:8001" for number in range(4)]
    assert [argument for argument in arguments if "--server=" in argument] == names[: triton["spec"]["replicas"]]

    objects = rendered(EVERYTHING)
    arguments = container(objects, "Deployment", "demo-twinspire-gateway")["args"]
    found = [argument for argument in arguments if "--server=" in argument]
    assert objects["HorizontalPodAutoscaler", "demo-twinspire-triton"]["spec"]["maxReplicas"] == 4
    assert found == [*names, "--server=gpu.example.org:8001"]


def test_autoscaling_follows_the_metric_of_the_adapter() -> None:
    """The autoscaler's metric is the one that prometheus-adapter's rule makes; by CPU where that is asked for."""
    (rule,) = yaml.safe_load((ROOT / "deploy" / "prometheus-adapter.yml").read_text("utf-8"))["rules"]["custom"]
    (metric,) = rendered(EVERYTHING)["HorizontalPodAutoscaler", "demo-twinspire-triton"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    (metric,) = rendered(CASES["by CPU"])["HorizontalPodAutoscaler", "demo-twinspire-triton"]["spec"]["metrics"]
    assert metric["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}
    assert "replicas" not in rendered(EVERYTHING)["StatefulSet", "demo-twinspire-triton"]["spec"]


def test_servers_let_gateways_alone_in() -> None:
    """The policy of the servers admits gateways, and Prometheus where it is named; they connect to nothing."""
    policy = rendered({})["NetworkPolicy", "demo-twinspire-triton"]["spec"]
    (rule,) = policy["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert policy["egress"] == []
    assert len(rendered(EVERYTHING)["NetworkPolicy", "demo-twinspire-triton"]["spec"]["ingress"]) == 2


def test_keys_are_asked_for_unless_it_is_said_otherwise() -> None:
    """Keys come from a Secret, random where none is named; only `insecure` leaves them out."""
    objects = rendered({})
    assert ("Secret", "demo-twinspire-keys") in objects
    assert "--keys=/etc/twinspire/keys/keys" in container(objects, "Deployment", "demo-twinspire-gateway")["args"]
    assert objects["Secret", "demo-twinspire-keys"]["data"] != rendered({})["Secret", "demo-twinspire-keys"]["data"]
    assert not [kind for kind, _ in rendered(EVERYTHING) if kind == "Secret"]
    arguments = container(rendered(CASES["no Triton"]), "Deployment", "demo-twinspire-gateway")["args"]
    assert "--insecure" in arguments
    assert not [argument for argument in arguments if "--keys" in argument]


@pytest.mark.parametrize("case", CASES)
def test_the_command_knows_every_option(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments of the containers are commands of `twinspire` with options that they have."""
    checked = set()
    for (kind, _), document in rendered(CASES[case]).items():
        if kind not in ("Deployment", "StatefulSet"):
            continue
        spec = document["spec"]["template"]["spec"]
        for each in [*spec.get("initContainers", ()), *spec["containers"]]:
            command, *arguments = each["args"]
            if command not in _HELP:
                _HELP[command] = run_twinspire(capsys, command, "--help").out
            known = _HELP[command]
            for argument in arguments:
                if argument.startswith("--"):
                    assert argument.partition("=")[0] in known
            checked.add(command)
    assert checked >= {"gateway"}


def test_pods_have_time_to_end() -> None:
    """Kubernetes kills a gateway only after the time that it may take to end."""
    values = copy.deepcopy(EVERYTHING)
    values["gateway"] |= {"shutdownDelay": 20, "shutdownTimeout": 100}
    spec = rendered(values)["Deployment", "demo-twinspire-gateway"]["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > 120
