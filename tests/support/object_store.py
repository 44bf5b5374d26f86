"""An S3 server of this process, by moto, for tests of whatever is stored on S3."""

import gc
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest


@contextmanager
def s3_server() -> Iterator[str]:
    """Yield an s3:// address on a server which, as S3 itself, lets one of two conditional writes of a key pass."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    put, one_at_a_time = S3Response.put_object, threading.Lock()  # moto looks for the key, then writes it

    def put_at_once(self: S3Response) -> Any:
        with one_at_a_time:
            return put(self)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    address, bucket = f"http://{host}:{port}", f"b-{uuid.uuid4().hex[:8]}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", put_at_once)
        for name, value in {**keys, "AWS_ENDPOINT_URL": address, "AWS_ALLOW_HTTP": "true"}.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket=bucket)
        yield f"s3://{bucket}"
    server.stop()
    gc.collect()  # here: a collection amid the `ast.parse` of Feast's import fails on Python 3.11 (gh-106905)
