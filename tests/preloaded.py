"""What `tests.processes` and `tests.scripts` have imported before they fork: all of Midwatch, and what that imports when it is used."""

from __future__ import annotations

import gc
import pkgutil
import threading
from importlib import import_module

import midwatch
from midwatch.server.page.rendering import compiled

LATER = (
    "alembic.command",
    "anyio._backends._asyncio",
    "anyio._core._subprocesses",
    "encodings.utf_8_sig",
    "genai_prices.data",
    "genai_prices.data_snapshot",
    "genai_prices.decompose",
    "genai_prices.validation",
    "mako.ext.pygmentplugin",
    "pydantic.v1",
    "re2",
    "sqlalchemy.ext.compiler",
    "tomllib",
    "typer._adapters",
    "typer._click.decorators",
    "uvicorn.lifespan.off",
)
"""Modules that are imported by functions of Midwatch or of its libraries."""

gc.disable()  # it would cost a third of the imports, and free nothing
for module in pkgutil.walk_packages(midwatch.__path__, "midwatch."):
    if "migrations" not in module.name and not module.name.endswith("__main__"):
        import_module(module.name)
for name in LATER:
    import_module(name)
compiled()
gc.freeze()
gc.enable()
assert threading.active_count() == 1
