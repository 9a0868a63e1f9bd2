CREATE USER midwatch@localhost;
GRANT PROCESS, SLAVE MONITOR, BINLOG MONITOR, REFERENCES ON *.* TO midwatch@localhost;
GRANT SELECT (User, Host, max_user_connections) ON mysql.user TO midwatch@localhost;
