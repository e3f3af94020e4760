#!/bin/sh
# Makes the passwords and keys that compose.yaml wants, once, into secrets/.
set -eu
cd "$(dirname "$0")"
umask 0077
mkdir -p secrets dags
if [ -e secrets/airflow.env ]; then
    echo "secrets.sh: secrets/airflow.env is there already; nothing has been changed" >&2
    exit 0
fi

random() {
    head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n'
}

password=$(random | tr -d '=')
cat >secrets/postgres.env <<END
POSTGRES_USER=airflow
POSTGRES_DB=airflow
POSTGRES_PASSWORD=$password
END
cat >secrets/airflow.env <<END
AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=postgresql+psycopg2://airflow:$password@postgres/airflow
AIRFLOW__API_AUTH__JWT_SECRET=$(random)
AIRFLOW__API__SECRET_KEY=$(random)
AIRFLOW__CORE__FERNET_KEY=$(random)
END
: >secrets/join-token
