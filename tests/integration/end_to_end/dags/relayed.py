"""A Dag that asks the Execution API for all that the Task SDK can ask it for.

What a Task SDK does not know yet is left out: the note says so, and the test knows which those are.
"""

# mypy: disable-error-code="untyped-decorator,misc"
# (the type checker is told not to look into Airflow)

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import (
    Asset,
    BaseHook,
    BaseOperator,
    PokeReturnValue,
    Variable,
    XComArg,
    dag,
    get_current_context,
    task,
)

THINGS = Asset(name="relayed-things", uri="file:///relayed-things")
BIG = 5_000_000


class Deferring(BaseOperator):
    """Defers once."""

    def execute(self, context: Any) -> None:
        del context
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="resume")

    def resume(self, context: Any, event: Any = None) -> str:
        del context, event
        return "resumed"


@dag(schedule=None, catchup=False)
def relay_target() -> None:
    BashOperator(task_id="shell", bash_command="true")


@dag(schedule=None, catchup=False)
def relayed() -> None:  # noqa: C901, PLR0915 -- a task for each thing to ask
    @task
    def big() -> str:
        return "x" * BIG

    @task
    def length(text: str) -> int:
        return len(text)

    @task
    def numbers() -> list[int]:
        return list(range(7))

    @task(map_index_template="{{ 'number ' ~ number }}")
    def same(number: int) -> int:
        return number

    @task
    def slices(values: Any) -> list[int]:
        # A sequence that is fetched by pieces: its length, one item, and slices.
        return [len(values), values[3], *values[1:3], *values[-2:]]

    @task
    def xcoms() -> dict[str, Any]:
        ti = get_current_context()["ti"]
        ti.xcom_push("a/b c", {"grüße": [1, 2]})
        pulled = ti.xcom_pull(task_ids=ti.task_id, key="a/b c")
        missing = ti.xcom_pull(task_ids="nobody", key="nothing")
        return {"pulled": pulled, "missing": missing}

    @task
    def variables() -> dict[str, Any]:
        Variable.set("relay/one", "1")
        found = Variable.get("relay/one")
        Variable.delete("relay/one")
        return {"found": found, "deleted": Variable.get("relay/one", default="gone")}

    @task
    def connection() -> dict[str, Any]:
        found = BaseHook.get_connection("relayed_db")
        try:
            BaseHook.get_connection("no_such_thing")
        except Exception as error:  # noqa: BLE001 - each Task SDK has its own
            missing = type(error).__name__
        return {"host": found.host, "password": found.password == "hidden", "missing": missing}

    @task(outlets=[THINGS])
    def makes_things() -> None:
        get_current_context()["outlet_events"][THINGS].extra = {"count": 3}

    @task(inlets=[THINGS])
    def counts_things() -> int:
        return int(get_current_context()["inlet_events"][THINGS][-1].extra["count"])

    @task
    def asks_about_runs() -> dict[str, Any]:
        context = get_current_context()
        ti, run = context["ti"], context["dag_run"]
        return {
            "state": ti.get_dagrun_state("relayed", run.run_id),
            "runs": ti.get_dr_count("relayed"),
            "tasks": ti.get_ti_count("relayed", run_ids=[run.run_id]) > 0,
            "states": ti.get_task_states("relayed", run_ids=[run.run_id], task_ids=["numbers"]),
            "previous": str(context["prev_start_date_success"]),
        }

    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def stops() -> bool:
        return False

    @task
    def never() -> None:
        raise AssertionError("it was to be skipped")

    @task.sensor(poke_interval=1, timeout=60, mode="reschedule")
    def comes_back() -> PokeReturnValue:
        context = get_current_context()
        marks = Path((context["dag_run"].conf or {})["dir"]) / "relayed-pokes"
        with marks.open("a") as file:
            file.write("poke\n")
        began = context["ti"].get_first_reschedule_date(context)
        pokes = len(marks.read_text().splitlines())
        return PokeReturnValue(is_done=pokes >= 2 and began is not None, xcom_value="came back")

    @task
    def remembers() -> str:
        store = get_current_context().get("task_state_store")
        if store is None:
            return "not known here"
        store.set("a/b", {"c": 1})
        got = store.get("a/b")
        store.delete("a/b")
        store.clear()
        return f"{got} {store.get('a/b')}"

    @task(retries=1, retry_delay=timedelta(seconds=0))
    def second_try() -> None:
        if get_current_context()["ti"].try_number == 1:
            raise ValueError("the first try fails")

    length(big())
    slices(same.expand(number=numbers()))
    numbers_known = XComArg(asks_about_runs().operator)
    xcoms()
    variables()
    connection()
    makes_things() >> counts_things()
    numbers_known >> stops() >> never()
    comes_back()
    remembers()
    second_try()
    Deferring(task_id="defers")
    BashOperator(task_id="renders", bash_command="echo {{ run_id }}")
    TriggerDagRunOperator(
        task_id="triggers",
        trigger_dag_id="relay_target",
        trigger_run_id="by-{{ run_id }}",
        wait_for_completion=True,
        poke_interval=1,
    )
    ApprovalOperator(task_id="asks_people", subject="Shall it go on?")


relay_target()
relayed()


@dag(schedule=None, catchup=False)
def outage() -> None:
    @task(retries=0)
    def member(number: int) -> int:
        folder = Path((get_current_context()["dag_run"].conf or {})["dir"])
        with (folder / f"began-{number}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        while not (folder / f"go-{number}").exists():
            time.sleep(0.05)
        (folder / f"ended-{number}").touch()
        return number

    member.expand(number=list(range(8)))


@dag(schedule=None, catchup=False)
def long_outage() -> None:
    @task(retries=0, queue="short")
    def waits() -> None:
        folder = Path((get_current_context()["dag_run"].conf or {})["dir"])
        (folder / "pid").write_text(str(os.getpid()))
        while not (folder / "go").exists():
            time.sleep(0.05)
        (folder / "ended").touch()

    @task(retries=0, queue="short")
    def ends() -> None:
        folder = Path((get_current_context()["dag_run"].conf or {})["dir"])
        (folder / "began").touch()
        while not (folder / "end").exists():
            time.sleep(0.05)

    waits()
    ends()


@dag(schedule=None, catchup=False)
def silent_outage() -> None:
    """Tasks that return nothing: in an outage they wait for nobody, and end."""

    @task(retries=0)
    def member(number: int) -> None:
        folder = Path((get_current_context()["dag_run"].conf or {})["dir"])
        with (folder / f"began-{number}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        while not (folder / f"go-{number}").exists():
            time.sleep(0.05)

    member.expand(number=list(range(5)))


outage()
long_outage()
silent_outage()
