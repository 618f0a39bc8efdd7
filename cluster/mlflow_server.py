"""A shared MLflow server for a group: runs in PostgreSQL, artefacts on S3, behind names and passwords.

    export PGHOST=db.my-group.org PGDATABASE=mlflow PGUSER=mlflow    and PGPASSWORD, or a line in ~/.pgpass
    export MLFLOW_ARTIFACTS_DESTINATION=s3://my-bucket/mlflow        and AWS credentials, or the machine's role
    export MLFLOW_AUTH_ADMIN_PASSWORD=...                            the first time: the password of the user admin
    python cluster/mlflow_server.py                                  on 127.0.0.1:5000, for a tunnel or a proxy

Credentials come from the environment or the machine alone. Clients need none for PostgreSQL or S3: artefacts pass
through the server. On an address that others can reach it requires a certificate, because passwords would cross the
network in the clear. It runs in the foreground. See cluster/README.md.
"""

import argparse
import ipaddress
import os
import secrets
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import psycopg
from botocore.exceptions import BotoCoreError, ClientError

DATABASE = "postgresql+psycopg:///"  # the rest comes from libpq's environment: no address has a password
AUTH = Path(__file__).resolve().with_name("mlflow_auth.ini")


def main() -> None:
    """Become the server. Exits with one line and code 2 where something that it needs is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=5000, help="the port (5000)")
    parser.add_argument("--workers", type=int, default=2, help="server processes (2)")
    parser.add_argument("--certificate", type=Path, help="PEM file with the server's certificate chain")
    parser.add_argument("--key", type=Path, help="PEM file with its private key")
    parser.add_argument("--allowed-hosts", help="names by which clients call it: mlflow.my-group.org,10.0.0.5:5000")
    arguments = parser.parse_args()
    try:
        server = [*_listen(arguments), *_encrypt(arguments)]
        _check_database()
        _check_bucket(os.environ.get("MLFLOW_ARTIFACTS_DESTINATION", ""))
    except ValueError as problem:
        print(f"mlflow_server.py: {problem}", file=sys.stderr)
        sys.exit(2)
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "server", *server], os.environ | _environment())


def _listen(arguments: argparse.Namespace) -> list[str]:
    if not (arguments.certificate or _is_loopback(arguments.host)):
        raise ValueError(
            f"--host {arguments.host}: others can reach it, and passwords would cross the network in the clear: give "
            "--certificate and --key, or listen on 127.0.0.1 behind a tunnel or a proxy that has them"
        )
    where = ["--host", arguments.host, "--port", str(arguments.port), "--workers", str(arguments.workers)]
    names = ["--allowed-hosts", arguments.allowed_hosts] if arguments.allowed_hosts else []
    return ["--app-name", "basic-auth", "--serve-artifacts", *where, *names]


def _encrypt(arguments: argparse.Namespace) -> list[str]:
    files = (arguments.certificate, arguments.key)
    if files == (None, None):
        return []
    for file, option in zip(files, ("--certificate", "--key"), strict=True):
        if file is None or not file.is_file():
            raise ValueError(f"{option}: {file or 'missing'}: give a certificate and its key as two PEM files")
    certificate, key = (shlex.quote(str(file.resolve())) for file in files)
    return ["--uvicorn-opts", f"--ssl-certfile {certificate} --ssl-keyfile {key}"]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_database() -> None:
    try:
        psycopg.connect("", connect_timeout=10).close()
    except psycopg.Error as error:
        raise ValueError(
            f"PostgreSQL: {' '.join(str(error).split())} (set PGHOST, PGPORT, PGDATABASE, PGUSER, and PGPASSWORD "
            "or ~/.pgpass)"
        ) from error


def _check_bucket(destination: str) -> None:
    """Raises ValueError unless ``destination`` is s3://BUCKET or s3://BUCKET/PREFIX, and the bucket accessible."""
    address = urlsplit(destination)
    if address.scheme != "s3" or not address.hostname or "@" in address.netloc:
        raise ValueError("MLFLOW_ARTIFACTS_DESTINATION: give s3://BUCKET or s3://BUCKET/PREFIX, without credentials")
    try:
        boto3.client("s3").head_bucket(Bucket=address.netloc)
    except (BotoCoreError, ClientError) as error:
        raise ValueError(f"s3://{address.netloc}: {error} (AWS credentials come from the environment)") from error


def _environment() -> dict[str, str]:
    """The server's settings. Other users see arguments in the process list, but not the environment."""
    return {
        "MLFLOW_BACKEND_STORE_URI": DATABASE,
        "MLFLOW_AUTH_CONFIG_PATH": str(AUTH),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
        # Signs the form on which an admin adds a user. Worker processes must share it; the next start need not.
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


if __name__ == "__main__":
    main()
