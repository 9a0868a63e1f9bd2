"""`python -I -S _command.py COMMAND …`: print what a command and all that it started cost, as `bench._meter.Cost`.

The command runs in a process session of its own. Its descendants are waited for too: those that nobody
waits for have this process as their parent. SIGTERM ends them.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time

_SET_CHILD_SUBREAPER = 36  # prctl(2)


def main() -> int:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    began = time.perf_counter()
    command = os.posix_spawnp(
        sys.argv[1],
        sys.argv[1:],
        os.environ,
        setsid=True,
        file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
    )
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(command, signal.SIGKILL))
    code, wall = 0, 0.0
    try:
        while True:
            pid, status = os.wait()
            if pid == command:
                code = os.waitstatus_to_exitcode(status)
                wall = time.perf_counter() - began
    except ChildProcessError:  # all have ended
        pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    cost = {
        "wall": wall,
        "processor": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss * unit / 1e6,
    }
    print(json.dumps(cost))
    return code


if __name__ == "__main__":
    sys.exit(main())
