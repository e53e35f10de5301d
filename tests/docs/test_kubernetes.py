"""deploy/kubernetes: what kustomize makes of it is right for three versions of Kubernetes, and for shopflow."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from shopflow.commands import worker as worker_command
from shopflow.config.loading import load, variables
from shopflow.web.monitoring import views

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULES = FOLDER / "components" / "monitoring" / "rules.yaml"
VERSIONS = ("1.33", "1.35", "1.37")
#: The kinds of the Prometheus operator and of KEDA, whose schemas are not at hand.
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
OVERLAYS = ("single", "production", "autoscaled")

Manifest = dict[str, Any]

needs_kustomize = pytest.mark.skipif(
    not (shutil.which("kustomize") or shutil.which("kubectl")), reason="needs kustomize: make test-kubernetes"
)


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """What kustomize makes of an overlay. `autoscaled` is production with KEDA's component."""
    folder = shutil.copytree(FOLDER, tmp_path_factory.mktemp("k8s") / "kubernetes")
    autoscaled = folder / "overlays" / "autoscaled"
    autoscaled.mkdir()
    text = "resources: [../production]\ncomponents: [../../components/autoscaling]\n"
    (autoscaled / "kustomization.yaml").write_text(text, encoding="ascii")
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    done = subprocess.run(
        [*command, str(folder / "overlays" / request.param)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def one(manifests: list[Manifest], kind: str, name: str = "shopflow") -> Manifest:
    (found,) = [
        each
        for each in manifests
        if (each["kind"], each["metadata"]["name"].removesuffix(hashed(each))) == (kind, name)
    ]
    return found


def hashed(manifest: Manifest) -> str:
    """What kustomize adds to the name of a ConfigMap."""
    found = re.search(r"-[a-z0-9]{10}$", manifest["metadata"]["name"])
    return found[0] if found and manifest["kind"] == "ConfigMap" else ""


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    """The pods' specs of whatever runs pods."""
    for each in manifests:
        if each["kind"] in {"StatefulSet", "Job"}:
            yield each["spec"]["template"]["spec"]


def files() -> list[Manifest]:
    """The manifests as they are written, without the patches and what only kustomize reads."""
    found = [path for path in FOLDER.rglob("*.yaml") if "overlays" not in path.parts and path.stem != "kustomization"]
    return [each for path in found for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def image() -> str:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return f"shopflow:{setup['metadata']['version']}"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_are_valid(version: str) -> None:
    """Also where kustomize is not installed: each file alone, with no unknown field, for each version of Kubernetes."""
    checked = [each for each in files() if each["kind"] not in FOREIGN]
    assert len(checked) >= 8
    for manifest in checked:
        kubernetes_validate.validate(manifest, version, strict=True)


@needs_kustomize
@pytest.mark.parametrize("version", VERSIONS)
def test_what_kustomize_makes_is_valid(rendered: list[Manifest], version: str) -> None:
    assert {"StatefulSet", "Service", "Job", "NetworkPolicy", "PodDisruptionBudget", "ConfigMap"} <= {
        each["kind"] for each in rendered
    }
    for manifest in rendered:
        if manifest["kind"] not in FOREIGN:
            kubernetes_validate.validate(manifest, version, strict=True)


@needs_kustomize
def test_the_settings_are_good_ones(rendered: list[Manifest]) -> None:
    """A worker refuses an unknown variable, so a pod with one would never start."""
    container = next(pods(rendered))["containers"][0]
    own = {each["name"]: each["value"].replace("$(POD_NAME)", "shopflow-0") for each in container["env"][1:]}
    secret = yaml.safe_load((FOLDER / "secret.example.yaml").read_text(encoding="utf-8"))
    logins = {name: text or "x7f" for name, text in secret["stringData"].items()}
    environ = {**one(rendered, "ConfigMap")["data"], **logins, **own}
    assert set(environ) <= set(variables())
    config = load({"SHOPFLOW_CONFIG": os.devnull, **environ})
    assert config.web.host == "shopflow-0.shopflow-workers"
    scaled = [each for each in rendered if each["kind"] == "ScaledObject"]
    most = [each["spec"]["maxReplicaCount"] for each in scaled] or [one(rendered, "StatefulSet")["spec"]["replicas"]]
    assert most[0] <= config.topics.partitions
    for each in scaled:
        (trigger,) = each["spec"]["triggers"]
        assert trigger["metadata"]["consumerGroup"] == config.app_id
        assert trigger["metadata"]["topic"] == f"{config.topics.prefix}purchases"
        assert each["spec"]["scaleTargetRef"] == {"kind": "StatefulSet", "name": "shopflow"}


@needs_kustomize
def test_image_ports_and_names_fit_together(rendered: list[Manifest]) -> None:
    """The image is the one that Compose builds; services, probes and policy are about the port that the worker has."""
    stateful = one(rendered, "StatefulSet")
    for pod in pods(rendered):
        assert [container["image"] for container in pod["containers"]] == [image()]
    pod = stateful["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": load({}).web.port}]
    paths = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths["startupProbe"] == paths["livenessProbe"] == {"path": "/health/live", "port": "http"}
    assert paths["readinessProbe"] == {"path": "/health/ready", "port": "http"}
    assert pod["terminationGracePeriodSeconds"] > worker_command._STOP_SECONDS
    assert stateful["spec"]["serviceName"] == one(rendered, "Service", "shopflow-workers")["metadata"]["name"]
    labels = stateful["spec"]["template"]["metadata"]["labels"].items()
    for name in ("shopflow", "shopflow-workers"):
        service = one(rendered, "Service", name)["spec"]
        assert service["selector"].items() <= labels
        assert service["ports"][0]["targetPort"] == "http"
    assert one(rendered, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels
    policy = one(rendered, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": load({}).web.port}]


@needs_kustomize
def test_no_pod_can_do_more_than_it_needs(rendered: list[Manifest]) -> None:
    """What the level `restricted` of Kubernetes asks for, and a root file system that can't be written."""
    assert one(rendered, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    user = int(re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)[-1])
    for pod in pods(rendered):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == user
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


@needs_kustomize
def test_prometheus_finds_the_workers(rendered: list[Manifest]) -> None:
    """The alerts name the job `shopflow`: the operator takes it from the service's name."""
    for monitor in (each for each in rendered if each["kind"] == "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        services = [each for each in rendered if each["kind"] == "Service"]
        found = [each for each in services if wanted <= each["metadata"]["labels"].items()]
        assert [each["metadata"]["name"] for each in found] == ["shopflow"]
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in found[0]["spec"]["ports"]}
        assert endpoint["path"] in Path(str(views.__file__)).read_text(encoding="utf-8")


def test_the_alerts_have_one_source() -> None:
    """`make kubernetes-rules` writes the file again after a change of deploy/prometheus/alerts.yml."""
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    assert (rules["apiVersion"], rules["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rules["spec"] == yaml.safe_load(ALERTS.read_text(encoding="utf-8"))


def test_the_example_holds_no_secret() -> None:
    """The real one is a file that git ignores."""
    text = (FOLDER / "secret.example.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"(?:PASSWORD|TOKEN): (.*)$", text, re.MULTILINE)) == {'""'}
    ignored = ["git", "check-ignore", "--quiet", str(FOLDER / "secret.yaml")]
    assert not subprocess.run(ignored, cwd=ROOT, check=False).returncode
