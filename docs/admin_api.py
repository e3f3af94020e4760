"""Writes admin-api.json, the OpenAPI document of the admin API. ``python docs/admin_api.py`` rewrites the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import Request

from airflow_edge_server.api.admin import create_admin_app
from airflow_edge_server.compat import AdminUser
from airflow_edge_server.store.transaction import airflow_sessions

PAGE = Path(__file__).parent / "admin-api.json"


def page() -> str:
    """Return what is to be in the file."""

    async def nobody(_: Request) -> AdminUser:
        raise NotImplementedError

    async def fine() -> None:
        return None

    app = create_admin_app(airflow_sessions, authenticate=nobody, problem=fine)
    document: dict[str, Any] = app.openapi()
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
