"""Steps around a real scheduler; each is run by name, none by itself."""

from __future__ import annotations

from integration.server import scenes


def _five_tasks_wait() -> None:
    scenes.dag_run(5, state=None, task_executor="airflow_edge_server.executor.EdgeExecutor")


def _then_two_are_queued() -> None:
    jobs = scenes.jobs()
    assert [(job.state, job.kind) for job in jobs] == [("queued", "task")] * 2, jobs
    # The scheduler takes the highest priority first.
    assert sorted(job.task_id or "" for job in jobs) == ["task_3", "task_4"]
    assert len({job.owner for job in jobs}) == 1
    scenes.finish(jobs[0].id)
    scenes.set_ti(jobs[0].ti_id, state="success")
    scenes.finish(jobs[1].id, "lost", exit_code=None, detail="host rebooted")


def _then_the_next_ones_are() -> None:
    states = sorted((job.task_id, job.state, job.reported) for job in scenes.jobs())
    assert [state for _, state, _ in states].count("queued") == 2, states
    # The new scheduler has adopted the task of the lost job, and told Airflow of its end.
    assert "lost: host rebooted" in scenes.log_messages()
    assert len({job.owner for job in scenes.jobs(state="queued")}) == 1
