"""What a SELECT may do on MariaDB and MySQL."""

from __future__ import annotations

import pytest

from midwatch.subjects.mysql.select_guard import admit
from midwatch.subjects.tools import Refused

ADMITTED = {
    "select id from shop.orders where state like 'n%'": "SELECT `id` FROM `shop`.`orders` WHERE `state` LIKE 'n%'",
    "with c as (select id from shop.orders) select max(id) as m from c": "WITH `c` AS (SELECT `id` FROM `shop`.`orders`) SELECT MAX(`id`) AS `m` FROM `c`",
    "select timestampdiff(second, trx_started, now()) as s from information_schema.innodb_trx": (
        "SELECT TIMESTAMPDIFF(SECOND, `trx_started`, NOW()) AS `s` FROM `information_schema`.`innodb_trx`"
    ),
}
REFUSED = [
    "SELECT /*! SLEEP(5) */ 1 AS x",
    "SELECT /*M!100100 SLEEP(5) */ 1 AS x",
    "SELECT 1 AS x -- comment",
    "SELECT 1 AS x # comment",
    "SELECT SLEEP(5) AS x",
    "SELECT sleep (5) AS x",
    "SELECT `sleep`(5) AS x",
    "SELECT BENCHMARK(1000000, MD5(1)) AS x",
    "SELECT GET_LOCK(1, 1) AS x",
    "SELECT LOAD_FILE(1) AS x",
    "SELECT NEXTVAL(shop.s) AS x",
    "SELECT shop.f(1) AS x",
    "SELECT f(1) AS x",
    "SELECT REPEAT(1, 100000) AS x",
    "SELECT GROUP_CONCAT(id) AS x FROM shop.orders",
    "SELECT id REGEXP '(a*)*b' AS x FROM shop.orders",
    "SELECT id FROM shop.orders INTO OUTFILE '/tmp/x'",
    "SELECT id INTO @a FROM shop.orders",
    "SELECT id FROM shop.orders FOR UPDATE",
    "SELECT id FROM shop.orders LOCK IN SHARE MODE",
    "SELECT @a := 1 AS x",
    "SELECT @@secure_file_priv AS x",
    "SELECT id FROM orders",
    "SELECT * FROM mysql.user",
    "SELECT * FROM sys.session",
    "SELECT * FROM information_schema.user_privileges",
    "SELECT * FROM performance_schema.user_variables_by_thread",
    "SELECT id FROM shop.orders; DROP TABLE shop.orders",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT n FROM r",
    "SELECT * FROM JSON_TABLE('[1]', '$[*]' COLUMNS (x INT PATH '$')) AS t",
    "SELECT 'the disk of the server is full' AS x",
    "SELECT 'it\\'s' AS x",
    "DELETE FROM shop.orders",
    "SET GLOBAL read_only = 0",
    "SHOW TABLES",
]


@pytest.mark.parametrize("statement", ADMITTED)
def test_a_statement_that_reads_is_written_again(statement: str) -> None:
    assert admit(statement).text == ADMITTED[statement]


@pytest.mark.parametrize("statement", REFUSED)
def test_what_could_do_more_is_refused(statement: str) -> None:
    with pytest.raises(Refused):
        admit(statement)
