#!/usr/bin/env bash
# Run by the PostgreSQL image when it makes its data directory: a role and a database per service.
set -euo pipefail

create() {
    psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
        --set name="$1" --set password="$2" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

create payments "$PAYMENTS_DB_PASSWORD"
create orders "$ORDERS_DB_PASSWORD"
