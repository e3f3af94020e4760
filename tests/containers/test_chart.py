"""The Helm chart, rendered by Helm itself and held against the schemas of Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from containers.reading import settings_of

helm = pytest.importorskip("helm_python", reason="Helm is on the registry for x86_64 only")

HELM = Path(__file__).parents[2] / "packaging/helm"
CHART = HELM / "airflow-edge-agent"
VALUES = yaml.safe_load((CHART / "ci/two-agents-values.yaml").read_text())
KUBERNETES = ("1.27", "1.30", "1.33")


@pytest.fixture
def chart() -> Iterator[Any]:
    with helm.Chart.load(CHART) as chart:
        yield chart


def render(chart: Any, release: str = "site", **changes: Any) -> list[dict[str, Any]]:
    texts = chart.render(VALUES | changes, name=release, namespace="edge")
    return [
        document
        for name, text in sorted(texts.items())
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def agents(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the pods' specifications by the agents' names."""
    sets = [document for document in documents if document["kind"] == "StatefulSet"]
    return {item["metadata"]["labels"]["edge-agent"]: item["spec"]["template"]["spec"] for item in sets}


def variables(pod: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in pod["containers"][0]["env"]}


def test_helm_has_nothing_to_complain_about(tmp_path: Path) -> None:
    copy = tmp_path / "airflow-edge-agent"
    copy.mkdir()
    for path in CHART.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(CHART)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(CHART)).write_bytes(path.read_bytes())
    defaults = yaml.safe_load((copy / "values.yaml").read_text())
    # Two values have no default on purpose: the address, and who the agents are.
    (copy / "values.yaml").write_text(yaml.safe_dump(defaults | VALUES))
    found = [message for message in helm.lint(copy)["messages"] if message["error"] != "icon is recommended"]
    assert found == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_what_is_made_fits_the_schemas(chart: Any, version: str) -> None:
    documents = render(chart)
    assert sorted(item["kind"] for item in documents) == [
        "NetworkPolicy",
        "ServiceAccount",
        "StatefulSet",
        "StatefulSet",
    ]
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_notice_what_is_wrong(chart: Any) -> None:
    document = next(item for item in render(chart, extraEnv=[{"nome": "X"}]) if item["kind"] == "StatefulSet")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES[0], strict=True)


def test_each_agent_takes_its_variables(chart: Any) -> None:
    pods = agents(render(chart))
    assert set(pods) == {"press-07", "press-08"}
    first, second = (settings_of(variables(pods[name])) for name in sorted(pods))
    assert (first.name, first.queues, first.concurrency) == ("press-07", ["plant-3"], 2)
    assert (second.name, second.concurrency) == ("press-08", 4)
    assert first.server_url == VALUES["serverUrl"]
    assert first.bundles["plant"].path == Path("/srv/dags")
    for name, settings in (("press-07", first), ("press-08", second)):
        assert settings.drain.deadline_seconds == 540
        assert pods[name]["terminationGracePeriodSeconds"] > settings.drain.deadline_seconds
        # No token in a variable, and each pod has only its own.
        assert not any(word in variables(pods[name]) for word in ("EDGE_AGENT_TOKEN",))
        secrets = [volume["secret"]["secretName"] for volume in pods[name]["volumes"] if "secret" in volume]
        assert secrets == [name]


def test_a_pod_has_no_rights_and_room_only_where_it_writes(chart: Any) -> None:
    for pod in agents(render(chart)).values():
        container = pod["containers"][0]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert writable == {"/var/lib/airflow-edge-agent", "/run/airflow-edge-agent", "/tmp"}


def test_without_a_volume_the_state_goes_with_the_pod(chart: Any) -> None:
    documents = render(chart, persistence={"enabled": False}, networkPolicy={"enabled": False})
    assert all(
        "volumeClaimTemplates" not in document["spec"] for document in documents if document["kind"] == "StatefulSet"
    )
    assert "NetworkPolicy" not in {document["kind"] for document in documents}
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES[0], strict=True)


def test_long_names_stay_apart_and_within_the_limits(chart: Any) -> None:
    names = [f"{'a' * 38}-{letter}" for letter in "xy"]
    documents = render(chart, release="r" * 40, agents={name: {"tokenSecret": "t"} for name in names})
    made = [item["metadata"]["name"] for item in documents if item["kind"] == "StatefulSet"]
    assert len(set(made)) == 2
    assert all(len(name) <= 52 for name in made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"serverUrl": "airflow.example.com"}, "serverUrl"),
        ({"agents": {}}, "agents"),
        ({"agents": {"Press_07": {"tokenSecret": "x"}}}, "Press_07"),
        ({"agents": {"press-07": {}}}, "tokenSecret"),
        ({"agents": {"press-07": {"tokenSecret": "x", "queue": "y"}}}, "queue"),
        ({"settings": {"state_dir": "/x"}}, "state_dir"),
        ({"persistence": {"size": "much"}}, "size"),
        ({"replicas": 3}, "replicas"),
    ],
)
def test_values_that_cannot_work_are_refused(chart: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(helm.HelmError, match=said):
        chart.render(VALUES | change, name="site", namespace="edge")


def test_the_image_has_the_user_that_the_chart_names() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    recipe = (HELM.parent / "compose/Containerfile.agent").read_text()
    uid, gid = (defaults["podSecurityContext"][name] for name in ("runAsUser", "runAsGroup"))
    assert f"--uid {uid} --gid {gid}" in recipe


def test_the_values_for_the_official_chart_choose_executor_and_api() -> None:
    values = yaml.safe_load((HELM / "airflow-values.yaml").read_text())
    env = {item["name"]: item["value"] for item in values["env"]}
    assert env == {
        "AIRFLOW__CORE__EXECUTOR": "airflow_edge_server.executor.EdgeExecutor",
        "AIRFLOW__EDGE_AGENT__API_ENABLED": "True",
    }
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert values["images"]["airflow"]["tag"] == version
