"""The parts of the scripted Messages API. Import from `midwatch.testing.messages_api`.

::

    server ─ thread, port ──▶ service ─ connections ──▶ http1      bytes
                                 │                  ──▶ journal    what was asked (requests)
                                 ├─▶ rules ─ which reply ─▶ answers (sse, instance)
                                 │                          errors, faults, hold
                                 └─▶ endpoints: what no rule speaks about
"""
