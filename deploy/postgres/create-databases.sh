#!/usr/bin/env bash
# The PostgreSQL image runs this when it makes its data directory: a role and a database per service.
# A database accepts connections only when it is complete, so a health check sees an interruption.
set -euo pipefail

create() {
    psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
        --set name="$1" --set password="$2" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name" ALLOW_CONNECTIONS false;
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
ALTER DATABASE :"name" ALLOW_CONNECTIONS true;
SQL
}

create payments "$PAYMENTS_DB_PASSWORD"
create orders "$ORDERS_DB_PASSWORD"
