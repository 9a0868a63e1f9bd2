"""The subject kind `logs`: errors, rates and heartbeats in files, containers' logs, journals and Loki."""

from midwatch.subjects.logs.subject import LogsSubject

__all__ = ["LogsSubject"]
