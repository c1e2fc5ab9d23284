"""What holds for all tests, and an S3 server for those of several folders."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

S3_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
"""
"""In a process of its own: vLLM in this one looks into all that is imported, which breaks Flask's proxies."""


def pytest_configure() -> None:
    """A program started in the background of a script ignores SIGINT, and so does all that it starts; tests
    of Ctrl-C need the ordinary way."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """An S3 server on loopback (moto's) with a bucket `bucket`: what a process that may use it has in its
    environment."""
    import boto3

    server = subprocess.Popen(
        [sys.executable, "-c", S3_SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None
    environment = {
        "AWS_ENDPOINT_URL": server.stdout.readline().strip(),
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="tests",
        aws_secret_access_key="tests",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    yield environment
    server.stdin.close()
    server.wait(60)
