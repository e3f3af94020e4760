"""The HTTP admin API: routes, and what they do with faults. What is behind them is in ``admin``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import StringConstraints
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.frames import NAME_PATTERN
from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server import compat, plainly
from airflow_edge_server.admin import actions, joining, models, views
from airflow_edge_server.api.admin_access import Authenticate, BodyLimit, Gate, make_gate
from airflow_edge_server.compat import AdminUser
from airflow_edge_server.store import fleet
from airflow_edge_server.store.transaction import Sessions, read, write

log = plainly.logger(__name__)

ADMIN_PREFIX = "/v1/admin"
"""Below the prefix of the plugin's app."""

T = TypeVar("T")

_MOST_MINUTES = 60 * 24 * 31
_FAULTS: dict[int | str, dict[str, Any]] = {
    401: {"model": models.Fault, "description": "Nobody whom Airflow knows."},
    403: {"model": models.Fault, "description": "Not allowed."},
    404: {"model": models.Fault, "description": "No such thing."},
    409: {"model": models.Fault, "description": "It cannot be done as things are."},
    413: {"model": models.Fault, "description": "The body is too large."},
    503: {"model": models.Fault, "description": "The database cannot be used; come again after Retry-After."},
}

AgentName = Annotated[str, Path(pattern=NAME_PATTERN)]
JobId = Annotated[str, Path(pattern=models.JOB_ID_PATTERN)]
JobIdText = Annotated[str, StringConstraints(pattern=models.JOB_ID_PATTERN)]
JoinTokenId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
Limit = Annotated[int, Query(ge=1, le=1_000)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
Pattern = Annotated[str | None, Query(max_length=100, description="A pattern with * and ?; case does not matter.")]
QueueName = Annotated[str | None, Query(max_length=256)]
Order = Annotated[
    str,
    Query(
        pattern=f"^-?({'|'.join(fleet.AGENT_ORDERS)})$",
        description="What to sort by; after '-' from greatest to least. What is not known comes last.",
    ),
]


def create_admin_app(
    sessions: Sessions, *, authenticate: Authenticate, problem: Callable[[], Awaitable[str | None]]
) -> FastAPI:
    """Build the app.

    :param authenticate: tells who sends a request, and what he may do.
    :param problem: tells why the database cannot be used, if so.
    """
    gate = make_gate(authenticate, problem)
    app = FastAPI(
        title="Edge agents: administration",
        version="1",
        description=(models.__doc__ or "") + "\nWithin `/v1` fields and endpoints are added, never changed or removed.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        responses=_FAULTS,
        servers=[{"url": f"/edge-agents{ADMIN_PREFIX}"}],
        root_path_in_servers=False,
        generate_unique_id_function=lambda route: route.name,
    )
    # Nothing is open by oversight: every route below needs at least the right to look.
    router = APIRouter(dependencies=[Depends(gate.viewer)])
    _add_reading(router, sessions, gate)
    changing = APIRouter(dependencies=[Depends(gate.changer)])
    _add_changing(changing, sessions, gate)

    @app.get("/me")
    async def me(user: AdminUser = Depends(gate.known)) -> models.Me:  # noqa: B008, FAST002  made in this call
        """Say who the caller is, and what he may do."""
        return models.Me(
            user=user.name, can_view=user.can_view, can_change=user.can_change, versions=views.server_versions()
        )

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    app.include_router(router)
    app.include_router(changing)
    app.add_middleware(BodyLimit)
    app.add_exception_handler(DBAPIError, _database_failed)
    app.add_exception_handler(views.NotFoundError, _not_found)
    app.add_exception_handler(actions.ConflictError, _conflict)
    return app


def _add_reading(router: APIRouter, sessions: Sessions, gate: Gate) -> None:
    def look(work: Callable[[Session], T]) -> T:
        return read(sessions, work)

    def own_teams(user: AdminUser = Depends(gate.viewer)) -> fleet.Teams:  # noqa: B008
        return user.teams

    whose: Any = Depends(own_teams)

    @router.get("/overview")
    def overview(teams: fleet.Teams = whose) -> models.Overview:
        """Show the fleet at a glance."""
        return look(lambda session: views.overview(session, teams))

    @router.get("/agents")
    def list_agents(
        *,
        name: Pattern = None,
        queue: QueueName = None,
        state: Annotated[list[AgentState] | None, Query(max_length=len(AgentState))] = None,
        problem: Annotated[bool | None, Query(description="Only those that report a problem, or none.")] = None,
        order_by: Order = "name",
        limit: Limit = 100,
        offset: Offset = 0,
        teams: fleet.Teams = whose,
    ) -> models.AgentList:
        """List agents."""
        wanted = fleet.AgentFilter(name, queue, state or (), problem, teams)
        return look(lambda session: views.list_agents(session, wanted, order_by=order_by, limit=limit, offset=offset))

    @router.get("/agents/{name}")
    def show_agent(name: AgentName, teams: fleet.Teams = whose) -> models.AgentDetail:
        """Show one agent."""
        return look(lambda session: views.show_agent(session, name, teams))

    @router.get("/agents/{name}/metrics")
    def agent_metrics(
        name: AgentName,
        minutes: Annotated[int, Query(ge=1, le=_MOST_MINUTES)] = 60,
        teams: fleet.Teams = whose,
    ) -> models.MetricsHistory:
        """Show how an agent's host was, minute by minute."""
        return look(lambda session: views.metrics_history(session, name, minutes=minutes, teams=teams))

    @router.get("/agents/{name}/events")
    def agent_events(
        name: AgentName,
        before: Annotated[int | None, Query(ge=0)] = None,
        limit: Limit = 100,
        teams: fleet.Teams = whose,
    ) -> models.EventList:
        """List what happened to an agent, newest first."""
        return look(lambda session: views.list_events(session, name, before=before, limit=limit, teams=teams))

    @router.get("/agents/{name}/jobs")
    def agent_jobs(
        name: AgentName,
        state: Annotated[list[JobState] | None, Query(max_length=len(JobState))] = None,
        limit: Limit = 100,
        offset: Offset = 0,
        teams: fleet.Teams = whose,
    ) -> models.JobList:
        """List the jobs of an agent, newest first."""
        wanted = fleet.JobFilter(states=state or (), agent=name, teams=teams)
        return look(lambda session: views.list_jobs(session, wanted, limit=limit, offset=offset))

    @router.get("/queues")
    def list_queues(teams: fleet.Teams = whose) -> models.QueueList:
        """List the queues that have jobs or are served."""
        return look(lambda session: views.list_queues(session, teams))

    @router.get("/teams")
    def list_teams(teams: fleet.Teams = whose) -> models.TeamList:
        """List Airflow's teams, for each of which there may be agents."""
        return look(lambda session: joining.list_teams(session, teams))

    @router.get("/jobs")
    def list_jobs(
        *,
        state: Annotated[list[JobState] | None, Query(max_length=len(JobState))] = None,
        queue: QueueName = None,
        agent: Annotated[str | None, Query(max_length=100, description="A name, or a pattern with * and ?.")] = None,
        dag_id: Annotated[str | None, Query(max_length=250)] = None,
        id: Annotated[list[JobIdText] | None, Query(max_length=100)] = None,  # noqa: A002  its name in the URL
        limit: Limit = 100,
        offset: Offset = 0,
        teams: fleet.Teams = whose,
    ) -> models.JobList:
        """List jobs, and why those that wait do so."""
        wanted = fleet.JobFilter(state or (), queue, agent, dag_id, id or (), teams)
        return look(lambda session: views.list_jobs(session, wanted, limit=limit, offset=offset))


def _add_changing(router: APIRouter, sessions: Sessions, gate: Gate) -> None:
    async def actor(request: Request, user: AdminUser = Depends(gate.changer)) -> actions.Actor:  # noqa: B008
        return actions.Actor(user.name, request.client.host if request.client else "unknown", user.teams)

    who: Any = Depends(actor)

    def order(name: str, what: models.AgentOrder, by: actions.Actor) -> models.Done:
        return write(sessions, lambda session: actions.order(session, name, what, by))

    @router.post("/agents/bulk")
    def order_many(asked: models.BulkOrder, by: actions.Actor = who) -> models.BulkDone:
        """Do the same to several agents. Each result says what became of it; one that fails keeps no other back."""
        return actions.order_many(sessions, asked.names, asked, by, dry_run=asked.dry_run)

    @router.post("/agents/{name}/maintenance")
    def maintenance(name: AgentName, asked: models.MaintenanceOrder, by: actions.Actor = who) -> models.Done:
        """Put an agent into maintenance, or take it out: in maintenance it gets no new jobs."""
        what = models.AgentOrder(
            action="maintenance_on" if asked.on else "maintenance_off",
            comment=asked.comment,
            for_seconds=asked.for_seconds,
        )
        return order(name, what, by)

    @router.post("/agents/{name}/drain")
    def drain(name: AgentName, asked: models.DrainOrder, by: actions.Actor = who) -> models.Done:
        """Offer an agent nothing more, or offer it jobs again. What it runs goes on."""
        return order(name, models.AgentOrder(action="drain" if asked.on else "resume"), by)

    @router.post("/agents/{name}/concurrency")
    def concurrency(name: AgentName, asked: models.ConcurrencyOrder, by: actions.Actor = who) -> models.Done:
        """Let an agent run so many jobs at a time, whatever its configuration says."""
        return order(name, models.AgentOrder(action="concurrency", slots=asked.slots), by)

    @router.post("/agents/{name}/queues")
    def queues(name: AgentName, asked: models.QueuesOrder, by: actions.Actor = who) -> models.Done:
        """Let an agent serve more queues than it is configured with, or fewer."""
        what = models.AgentOrder(action="queues", add=asked.add, remove=asked.remove, reset=asked.reset)
        return order(name, what, by)

    @router.post("/agents/{name}/revoke")
    def revoke(name: AgentName, asked: models.RevokeOrder, by: actions.Actor = who) -> models.Done:
        """Take an agent's credentials away: its connection ends within two seconds, and it cannot come back."""
        return order(name, models.AgentOrder(action="revoke", running_jobs=asked.running_jobs), by)

    @router.delete("/agents/{name}")
    def delete_agent(name: AgentName, by: actions.Actor = who) -> models.Done:
        """Forget an agent that is offline, with its credentials and its past."""
        return order(name, models.AgentOrder(action="delete"), by)

    @router.post("/jobs/{job_id}/cancel")
    def cancel_job(job_id: JobId, asked: models.CancelOrder, by: actions.Actor = who) -> models.Done:
        """End a job. Airflow takes this try of the task for failed, and retries it if the Dag says so."""
        return write(sessions, lambda session: actions.cancel_job(session, job_id, asked.reason, by))

    @router.get("/join-tokens")
    def list_join_tokens(by: actions.Actor = who) -> models.JoinTokenList:
        """List join tokens, without their secrets."""
        return read(sessions, lambda session: joining.list_join_tokens(session, by.teams))

    @router.post("/join-tokens", status_code=201)
    def create_join_token(
        request: Request, asked: models.JoinTokenOrder, by: actions.Actor = who
    ) -> models.NewJoinToken:
        """Make a join token. Its text is in this answer only, with the commands for a new machine."""
        url = compat.base_url() or str(request.base_url.replace(path="/"))
        return write(sessions, lambda session: joining.create_join_token(session, asked, by, server_url=url))

    @router.delete("/join-tokens/{token_id}")
    def revoke_join_token(token_id: JoinTokenId, by: actions.Actor = who) -> models.Done:
        """Let nobody in with a join token any more. Agents that came with it stay."""
        return write(sessions, lambda session: joining.revoke_join_token(session, token_id, by))


async def _conflict(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=409)


async def _database_failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DBAPIError)
    # The driver's own text may hold the connection string.
    log.warning("%s %s failed: the database failed (%s).", request.method, request.url.path, type(error.orig).__name__)
    text = "the database is busy or cannot be reached"
    return JSONResponse({"detail": text}, status_code=503, headers={"Retry-After": "5"})


async def _not_found(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=404)
