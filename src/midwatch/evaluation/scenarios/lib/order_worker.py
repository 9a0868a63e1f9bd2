"""A worker that logs: `order_worker.py LOG PORT` pays orders at PORT, and writes what it did to LOG.

It reopens LOG when that is renamed. Files beside LOG change it: with `LOG.shards` it meets a damaged shard.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import socket
import sys
import time

PACE = 0.05  # seconds between two orders


def main(path: str, port: str) -> None:
    """Work until it is killed."""
    handler = logging.handlers.WatchedFileHandler(path)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    log = logging.getLogger("shop.payments")
    order, damaged = 1000, False
    while True:
        order += 1
        if order % 10 == 0:
            log.info("worker is alive, %d orders so far", order - 1000)
        if order % 20 == 0:
            log.error("order %d has no customer, it is left out", order)
        if os.path.exists(f"{path}.shards") and not damaged:
            damaged = True
            log.error(
                "read of segment orders-%d failed: checksum mismatch in shard %d",
                order,
                7,
            )
        pay(log, order, int(port))
        time.sleep(PACE)


def pay(log: logging.Logger, order: int, port: int) -> None:
    """Pay one order, and log how that went."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(json.dumps({"order": order}).encode() + b"\n")
    except OSError as error:
        log.error(
            "order %d cannot be paid: payments at 127.0.0.1:%d: %s",
            order,
            port,
            error.strerror or error,
        )
    else:
        log.info("order %d is paid in %d ms", order, order % 17)


if __name__ == "__main__":
    main(*sys.argv[1:])
