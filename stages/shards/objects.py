"""Writing to S3: an object is there whole, or stays as it was, whatever becomes of its writer.

A small object is one request that states its length; a large one an upload in parts, which is no object
before it is completed and is aborted by an error. Each request carries a checksum that the store compares."""

import contextlib
import functools
import html
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote_plus

T = TypeVar("T")

PART = 16 << 20  # bytes of one part, and of the largest object in one request
READS, PAUSE_S = 5, 0.5  # of one whole read that fails in its middle, and before the second
ATTEMPTS = 8  # of a request: 503, time-outs, lost connections; with growing, random pauses up to 20 s
CONNECT_S, REQUEST_S = 10, 60
CONNECTIONS = 16  # kept open, for threads that list
HASTE_S = 5  # for those who wait for an answer, twice


class Changed(OSError):
    """A conditional write found another object than it expected."""


KINDS = {
    401: PermissionError,
    403: PermissionError,
    404: FileNotFoundError,
    409: Changed,
    412: Changed,
}  # of error, by the status of an answer


def reached() -> tuple[str | None, str | None]:
    """(endpoint, region) by the usual variables: AWS_ENDPOINT_URL(_S3), AWS_REGION, AWS_DEFAULT_REGION."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    # a private store has no region; AWS's look-up would hang
    return endpoint, region or ("us-east-1" if endpoint else None)


def upload(address: str, path: Path) -> None:
    """A local file under a name `bucket/key`."""
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)
    bucket, key = _split(address)
    with _told(address):
        _client().upload_file(str(path), bucket, key, Config=parts)


def put(address: str, data: bytes, **condition: str) -> str:
    """In one request; returns the ETag. `IfNoneMatch="*"`: only where there is none; `IfMatch=etag`: only in
    place of that one; raises Changed otherwise. An error comes within half a minute."""
    bucket, key = _split(address)
    with _told(address):
        return _client(hasty=True).put_object(Bucket=bucket, Key=key, Body=data, **condition)["ETag"]


def get(address: str) -> tuple[bytes, str]:
    """(bytes, ETag); FileNotFoundError. An error comes within half a minute."""
    bucket, key = _split(address)
    with _told(address):
        found = _client(hasty=True).get_object(Bucket=bucket, Key=key)
        return found["Body"].read(), found["ETag"]


def delete(address: str) -> None:
    """Nothing where there is none."""
    bucket, key = _split(address)
    with _told(address):
        _client().delete_object(Bucket=bucket, Key=key)


def names(folder: str) -> set[str]:
    """Of keys and folders directly below `bucket/prefix`: beyond a thousand, by threads that each begin at
    another letter, or digit of hashes, for a store gives a thousand a request, one page after the other."""
    first, more = _names(folder, "")
    if not more:
        return {*first}
    last = max(first, default="")
    starts = [last, *(start for digit in "123456789abcdef" if (start := last[:1] + digit) > last)]

    def between(start: str, end: str | None) -> list[str]:
        own, more = _names(folder, start)
        found = [*own]
        while more and not (end and max(own, default="") > end):
            own, more = _names(folder, start, more)
            found += own
        return found

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return {*first}.union(*pool.map(between, starts, [*starts[1:], None]))


def _names(folder: str, after: str, more: str = "") -> tuple[list[str], str]:
    """Of one request, and how it goes on."""
    bucket, prefix = _split(f"{folder}/")
    place = {"ContinuationToken": more} if more else {"StartAfter": f"{prefix}{after}"} if after else {}
    with _told(folder):
        found = _lister(os.getpid(), *reached()).list_objects_v2(
            Bucket=bucket, Prefix=prefix, Delimiter="/", EncodingType="url", **place
        )
    own = [key[len(prefix) :].rstrip("/") for key in found["Keys"]]
    return [name for name in own if name], found.get("NextContinuationToken", "")


@functools.cache
def _lister(pid: int, endpoint: str | None, region: str | None) -> Any:
    client = _opened.__wrapped__(pid, endpoint, region, False)
    client.meta.events.register_first("before-parse.s3.ListObjectsV2", _only_keys)
    return client


def _only_keys(response_dict: dict, customized_response_dict: dict, **_: Any) -> None:
    """Of a page: boto's own way to read a thousand entries takes 30 ms and more."""
    body = response_dict["body"]
    found = re.findall(rb"<(?:Key|CommonPrefixes>\s*<Prefix)>([^<]*)<", body)
    customized_response_dict["Keys"] = unquote_plus(html.unescape(b"\n".join(found).decode())).split("\n")
    response_dict["body"] = re.sub(rb"<(Contents|CommonPrefixes)>.*</\1>", b"", body, flags=re.DOTALL)


class Page(NamedTuple):
    """Of a listing: (address, size, mtime_ns) of keys, addresses of folders that were to be set apart, and
    how it goes on."""

    keys: list[tuple[str, int, int]]
    folders: list[str]
    more: str


def page(folder: str, apart: bool = False, more: str = "") -> Page:
    """One request's keys below `bucket/prefix/`, a thousand at most. `apart`: not those in folders of it, but
    these folders. `more`: of the page before."""
    bucket, prefix = _split(folder)
    options = ({"Delimiter": "/"} if apart else {}) | ({"ContinuationToken": more} if more else {})
    with _told(folder):
        found = _client().list_objects_v2(Bucket=bucket, Prefix=prefix, **options)
    keys = [(f"{bucket}/{o['Key']}", o["Size"], _ns(o["LastModified"])) for o in found.get("Contents", ())]
    folders = [f"{bucket}/{one['Prefix']}" for one in found.get("CommonPrefixes", ())]
    return Page(keys, folders, found.get("NextContinuationToken", ""))


def _ns(moment: datetime) -> int:
    """Whole milliseconds, as Arrow has them."""
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1) * 1_000_000


def abort_uploads(folder: str) -> int:
    """End the unfinished uploads of dead writers below `bucket/prefix`: parts cost storage until then."""
    bucket, prefix = _split(f"{folder}/")
    with _told(folder):
        pages = _client().get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        left = [one for page in pages for one in page.get("Uploads", ())]
        for one in left:
            _client().abort_multipart_upload(Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"])
    return len(left)


def _split(address: str) -> tuple[str, str]:
    bucket, _, key = address.partition("/")
    return bucket, key


def _client(hasty: bool = False) -> Any:
    return _opened(os.getpid(), *reached(), hasty)  # a connection does not survive a fork


@functools.cache
def _opened(pid: int, endpoint: str | None, region: str | None, hasty: bool) -> Any:
    from boto3.session import Session
    from botocore import session
    from botocore.config import Config

    core = session.get_session()
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
    config = Config(
        connect_timeout=HASTE_S if hasty else CONNECT_S,
        read_timeout=HASTE_S if hasty else REQUEST_S,
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": 2 if hasty else ATTEMPTS},
        s3={"addressing_style": "path"} if endpoint else {},  # as Arrow's client, which reads
    )
    return Session(botocore_session=core).client(
        "s3", endpoint_url=endpoint, region_name=region, config=config
    )


def _moment(text: Any) -> datetime:
    """botocore's own way takes most of the time of a listing."""
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):  # a number, or as headers have it
        return parse_timestamp(text)


def patiently(read: Callable[[], T]) -> T:
    """What a read gives, again after a pause where the store did not answer, or not to the end."""
    for attempt in range(READS):
        try:
            return read()
        except (FileNotFoundError, PermissionError, Changed):
            raise
        except OSError:
            if attempt + 1 == READS:
                raise
            time.sleep(PAUSE_S * 2**attempt * (1 + random.random()))
    raise AssertionError


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """The store's errors as those of a file: FileNotFoundError, PermissionError, Changed, OSError."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        cause = error if isinstance(error, ClientError) else error.__context__
        said = cause.response if isinstance(cause, ClientError) else {}
        status = said.get("ResponseMetadata", {}).get("HTTPStatusCode")
        kind = PermissionError if isinstance(error, NoCredentialsError) else KINDS.get(status, OSError)
        raise kind(f"s3://{address}: {cause if said else error}") from error
