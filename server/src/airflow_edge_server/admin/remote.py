"""The fleet through the HTTP admin API, from anywhere."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from airflow_edge_agent.protocol.frames import NAME_PATTERN
from airflow_edge_server.admin import models
from airflow_edge_server.admin.fleet import PAGE, FleetError
from airflow_edge_server.store.fleet import AgentFilter, JobFilter

M = TypeVar("M", bound=BaseModel)

_SECONDS = 60.0
_UNAUTHORIZED, _NOT_FOUND = 401, 404
_IDS = 100
"""Most ids of jobs in one question."""


class RemoteFleet:
    """A client of the admin API.

    :param url: base URL of the api-server.
    :param token: a token of Airflow's own, as ``POST /auth/token`` gives it.
    :raises FleetError: when the token would travel in the clear.
    """

    def __init__(self, url: str, token: str, *, transport: httpx.BaseTransport | None = None) -> None:
        scheme, host = _read(url)
        if scheme not in {"http", "https"} or not host:
            raise FleetError(f"{url!r} is no URL of an api-server: write https://HOST, with a path if there is one")
        if scheme == "http" and not _is_loopback(host):
            raise FleetError(f"{url} would send the token in the clear: write https://")
        self._http = httpx.Client(
            base_url=f"{url.rstrip('/')}/edge-agents/v1/admin",
            headers={"Authorization": f"Bearer {token}"},
            timeout=_SECONDS,
            transport=transport,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def overview(self) -> models.Overview:
        """Show the fleet at a glance."""
        return self._ask(models.Overview, "GET", "/overview")

    def agents(self, wanted: AgentFilter, *, order_by: str = "name") -> list[models.AgentItem]:
        """List all agents that match."""
        params = {
            "name": wanted.name,
            "queue": wanted.queue,
            "state": [str(state) for state in wanted.states],
            "problem": wanted.troubled,
            "order_by": order_by,
            "limit": PAGE,
        }
        found: list[models.AgentItem] = []
        while True:
            page = self._ask(models.AgentList, "GET", "/agents", params={**params, "offset": len(found)})
            found += page.items
            if not page.items or len(found) >= page.total:
                return found

    def agent(self, name: str) -> models.AgentDetail:
        """Show one agent."""
        return self._ask(models.AgentDetail, "GET", _agent(name))

    def metrics(self, name: str, *, minutes: int) -> models.MetricsHistory:
        """Show how an agent's host was."""
        return self._ask(models.MetricsHistory, "GET", f"{_agent(name)}/metrics", params={"minutes": minutes})

    def events(self, name: str, *, limit: int) -> models.EventList:
        """List what happened to an agent."""
        return self._ask(models.EventList, "GET", f"{_agent(name)}/events", params={"limit": limit})

    def queues(self) -> models.QueueList:
        """List the queues."""
        return self._ask(models.QueueList, "GET", "/queues")

    def jobs(self, wanted: JobFilter, *, limit: int) -> models.JobList:
        """List jobs."""
        params = {
            "state": [str(state) for state in wanted.states],
            "queue": wanted.queue,
            "agent": wanted.agent,
            "dag_id": wanted.dag_id,
            "limit": limit,
        }
        ids = list(wanted.ids)
        parts = [ids[start : start + _IDS] for start in range(0, len(ids), _IDS)] or [[]]
        found = [self._ask(models.JobList, "GET", "/jobs", params={**params, "id": part}) for part in parts]
        return models.JobList(
            items=[job for one in found for job in one.items][:limit], total=sum(one.total for one in found)
        )

    def order(self, names: Sequence[str], what: models.AgentOrder, *, dry_run: bool) -> models.BulkDone:
        """Do the same to several agents."""
        results: list[models.Done] = []
        for start in range(0, len(names), PAGE):
            part = list(names[start : start + PAGE])
            body = what.model_dump(mode="json") | {"names": part, "dry_run": dry_run}
            results += self._ask(models.BulkDone, "POST", "/agents/bulk", json=body).results
        return models.BulkDone(dry_run=dry_run, failed=sum(not one.ok for one in results), results=results)

    def cancel(self, job_id: str, reason: str | None) -> models.Done:
        """End a job."""
        path = f"/jobs/{quote(job_id, safe='')}/cancel"
        return self._ask(models.Done, "POST", path, json={"reason": reason})

    def create_join_token(self, asked: models.JoinTokenOrder) -> models.NewJoinToken:
        """Make a join token."""
        # What was not asked for is left out: an older server would refuse a field that it does not know.
        return self._ask(models.NewJoinToken, "POST", "/join-tokens", json=asked.model_dump(exclude_none=True))

    def join_tokens(self) -> models.JoinTokenList:
        """List the join tokens."""
        return self._ask(models.JoinTokenList, "GET", "/join-tokens")

    def revoke_join_token(self, token_id: str) -> models.Done:
        """Let nobody in with a join token any more."""
        return self._ask(models.Done, "DELETE", f"/join-tokens/{quote(token_id, safe='')}")

    def _ask(self, kind: type[M], method: str, path: str, **options: Any) -> M:
        if "params" in options:
            options["params"] = {key: value for key, value in options["params"].items() if value not in (None, [])}
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise FleetError(f"{self._http.base_url} cannot be asked: {str(error) or type(error).__name__}") from None
        if not answer.is_success:
            raise FleetError(_fault(answer))
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError:
            where = f"{self._http.base_url}{path.removeprefix('/')}"
            raise FleetError(f"{where} is not answered as by airflow-edge-server: is the URL right?") from None


def _read(url: str) -> tuple[str, str | None]:
    """Return scheme and host of a URL."""
    try:
        httpx.URL(url)
        parts = urlsplit(url)
    except (ValueError, httpx.InvalidURL):
        return "", None
    return parts.scheme, parts.hostname


def _agent(name: str) -> str:
    """Return the path of an agent. What cannot be a name might be the path of something else."""
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise FleetError(f"there is no agent called {name!r}")
    return f"/agents/{quote(name, safe='')}"


def _fault(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
        if isinstance(detail, list):
            detail = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in detail[:5])
    except (ValueError, KeyError, TypeError):
        # Answered by something else than this API.
        detail = None
    if answer.status_code == _UNAUTHORIZED:
        return f"the token is not valid ({detail or 'HTTP 401'}): get a new one by POST /auth/token"
    if answer.status_code == _NOT_FOUND and detail in (None, "Not Found"):
        return f"{answer.request.url} is not found: is [edge_agent] api_enabled set, and the URL right?"
    return str(detail or f"HTTP {answer.status_code} from {answer.request.url}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
