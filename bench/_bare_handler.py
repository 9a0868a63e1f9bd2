"""The floor of `bench.alerts` and `bench.changes`: a Starlette application that inserts one row for each request, and commits it."""

from __future__ import annotations

import sqlite3
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def make(file: str) -> Starlette:
    database = sqlite3.connect(file, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("CREATE TABLE pushes (id INTEGER PRIMARY KEY, body TEXT)")

    async def push(request: Request) -> JSONResponse:
        await request.json()
        body = await request.body()
        database.execute("INSERT INTO pushes (body) VALUES (?)", (body.decode(),))
        return JSONResponse({"received": 1})

    return Starlette(routes=[Route("/{path:path}", push, methods=["POST"])])


if __name__ == "__main__":
    uvicorn.run(
        make(sys.argv[1]), fd=int(sys.argv[2]), log_level="error", access_log=False
    )
