"""Objects of stores, read with as few requests as can be: the size, what identifies the content, and the first bytes
come with one ranged GET, and later reads are on the condition that the object is still that one.

S3 tells the size of an object in Content-Range and its ETag with every answer, so no HEAD is needed. Other stores are
asked for the size first, since fsspec keeps no header of an answer.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from omniprep.io.stores import call_store, filesystem, http_status, is_s3

_RANGE_NOT_SATISFIABLE = 416
_PRECONDITION_FAILED = 412


class ChangedObjectError(OSError):
    """The object is not the one that was seen before."""


@dataclass(frozen=True, slots=True)
class ObjectPart:
    """Bytes of an object from some offset on, and what the answer told of the whole."""

    data: bytes
    size: int
    """Bytes of the whole object."""
    mark: str
    """Its ETag; "" where the store's client does not tell it."""


def read_object(uri: str, start: int, end: int, mark: str = "") -> ObjectPart:
    """Bytes [start, end) of an object, fewer where it ends before; one request on S3.

    Args:
        uri: The object.
        start: First byte.
        end: Behind the last byte.
        mark: The ETag that the object must have; "" takes any.

    Raises:
        ChangedObjectError: The object has another ETag.
        StoreUnavailableError: The store answers nobody: after all tries, or since the credentials are not valid now.
        OSError: Another fault, which names the object.
    """
    fs, path = filesystem(uri)
    if not is_s3(fs):
        size = call_store(uri, lambda: int(fs.size(path)))
        stop = min(end, size)
        data = call_store(uri, lambda: cast(bytes, fs.cat_file(path, start=start, end=stop))) if start < stop else b""
        return ObjectPart(data, size, "")

    def call() -> ObjectPart | None:
        try:
            return _get(fs, path, start, end, mark)
        except Exception as error:
            status = _status(error)
            if status == _RANGE_NOT_SATISFIABLE:
                return None
            if status == _PRECONDITION_FAILED:
                raise ChangedObjectError(f"{uri}: was changed since it was planned") from error
            raise

    part = call_store(uri, call)
    if part is not None:
        return part
    size = call_store(uri, lambda: int(fs.size(path)))  # nothing lies there, as in an empty object
    return ObjectPart(b"", size, "")


def _get(fs: Any, path: str, start: int, end: int, mark: str) -> ObjectPart:
    from fsspec.asyn import sync

    bucket, key, version = fs.split_path(path)
    options: dict[str, Any] = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
    options |= {"VersionId": version} if version else {}
    options |= {"IfMatch": mark} if mark else {}

    async def request() -> ObjectPart:
        answer = await cast(Callable[..., Awaitable[dict[str, Any]]], fs._call_s3)("get_object", **options)
        try:
            data = await answer["Body"].read()
        finally:
            answer["Body"].close()
        total = str(answer.get("ContentRange") or "").rpartition("/")[2]
        if total.isdecimal():
            return ObjectPart(data, int(total), str(answer.get("ETag") or ""))
        # A server that knows no ranges sends the whole object.
        return ObjectPart(data[start:end], len(data), str(answer.get("ETag") or ""))

    return cast(ObjectPart, sync(fs.loop, request))


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of s3fs, which hides it one exception deep."""
    while error is not None:
        if (status := http_status(error)) is not None:
            return status
        error = error.__cause__ or error.__context__
    return None
