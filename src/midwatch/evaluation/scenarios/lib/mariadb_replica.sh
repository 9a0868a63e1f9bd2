# Make one MariaDB server the replica of another one, from its present position on, and wait until both threads run.
# Arguments: the socket and the port of the source, and the socket of the replica.
set -e
client="mariadb --no-defaults -u root -BN"
$client -S "$1" -e "CREATE USER repl@localhost IDENTIFIED BY 'for-evaluation-only'; GRANT REPLICATION SLAVE ON *.* TO repl@localhost"
set -- "$2" "$3" $($client -S "$1" -e "SHOW MASTER STATUS")
$client -S "$2" -e "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=$1, MASTER_USER='repl', MASTER_PASSWORD='for-evaluation-only',
  MASTER_LOG_FILE='$3', MASTER_LOG_POS=$4, MASTER_CONNECT_RETRY=1; START SLAVE"
for _ in $(seq 300); do
  both=$(mariadb --no-defaults -u root -S "$2" -e "SHOW SLAVE STATUS\G" | grep -cE "Slave_(IO|SQL)_Running: Yes" || true)
  [ "$both" = 2 ] && exit 0
  sleep 0.1
done
echo "the replica does not run" >&2
exit 1
