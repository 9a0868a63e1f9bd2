"""The subject kind `redis`: Redis, Valkey and what else speaks their protocol and has their INFO."""

from midwatch.subjects.redis.subject import RedisSubject

__all__ = ["RedisSubject"]
