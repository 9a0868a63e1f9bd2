"""`python -I -S _processor_time.py COMMAND …`: print the processor seconds of a command and all that it started.

The command runs in a process session of its own. Its descendants are waited for too: those that nobody
waits for have this process as their parent.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

_SET_CHILD_SUBREAPER = 36  # prctl(2)


def main() -> int:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    command = os.posix_spawnp(
        sys.argv[1],
        sys.argv[1:],
        os.environ,
        setsid=True,
        file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
    )
    code = 0
    try:
        while True:
            pid, status = os.wait()
            if pid == command:
                code = os.waitstatus_to_exitcode(status)
    except ChildProcessError:  # all have ended
        pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(used.ru_utime + used.ru_stime)
    return code


if __name__ == "__main__":
    sys.exit(main())
