"""The subject kind `mysql`: MariaDB and MySQL. It needs an account with PROCESS and few more privileges, and reads no table of users."""

from midwatch.subjects.mysql.settings import INVARIANTS, MysqlSettings
from midwatch.subjects.mysql.subject import MysqlSubject

__all__ = ["INVARIANTS", "MysqlSettings", "MysqlSubject"]
