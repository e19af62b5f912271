"""Writes to object stores that happen only while a name is as it was last seen: created only where it is absent,
replaced or removed only where it is still the object that was looked at.

Stores decide this themselves (S3: If-None-Match and If-Match; fsspec: mode "create"), so it holds however long a
process slept between its look and its write. Where a store or its fsspec client cannot do it, the write is made as it
is: the caller has looked just before.
"""

import inspect
from collections.abc import Callable
from typing import Any, BinaryIO

from omniprep.io.stores import http_status, is_s3

WHOLE_BYTES = 64 << 20
"""Up to here an object is sent with one request."""
_BLOCK = 16 << 20
_NOT_IMPLEMENTED = 501
_REFUSED = (409, 412)
"""Conflict (somebody writes it at this moment) and Precondition Failed."""


class RefusedError(FileExistsError):
    """The name is not as it was last seen; nothing was written."""


def mark_of(fs: Any, path: str) -> str | None:
    """What tells an object from any other of that name (on S3 its ETag, elsewhere ""); None where there is none."""
    try:
        info = fs.info(path)
    except FileNotFoundError:
        return None
    return str(info.get("ETag") or "") if is_s3(fs) else ""


def create(fs: Any, path: str, spool: BinaryIO, length: int) -> None:
    """Write an object that is not there; RefusedError where one is."""
    if not _can_create(fs):
        if fs.exists(path):
            raise RefusedError(path)
        _send(fs, path, spool, length, "overwrite", {})
        return
    _conditionally(
        lambda: _send(fs, path, spool, length, "create", {}), lambda: _send(fs, path, spool, length, "overwrite", {})
    )


def replace(fs: Any, path: str, spool: BinaryIO, length: int, mark: str) -> None:
    """Write an object in place of the one that `mark_of` saw; RefusedError where it is another, or gone."""
    if not mark:
        _send(fs, path, spool, length, "overwrite", {})
    elif length < WHOLE_BYTES:
        _conditionally(
            lambda: _send(fs, path, spool, length, "overwrite", {"IfMatch": mark}),
            lambda: _send(fs, path, spool, length, "overwrite", {}),
        )
    else:  # s3fs takes no condition for parts: the name is freed, and then taken
        remove(fs, path, mark)
        create(fs, path, spool, length)


def remove(fs: Any, path: str, mark: str) -> None:
    """Remove the object that `mark_of` saw; RefusedError where it is another."""
    if not mark:
        fs.rm(path)
        return
    bucket, key, _ = fs.split_path(path)
    _conditionally(lambda: fs.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=mark), lambda: fs.rm(path))
    fs.invalidate_cache(path)


def _conditionally(call: Callable[[], object], plain: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:
        statuses = {http_status(error), http_status(error.__cause__), http_status(error.__context__)}
        if isinstance(error, FileExistsError) or statuses & set(_REFUSED):
            raise RefusedError(str(error)) from error
        if _NOT_IMPLEMENTED not in statuses:
            raise
        plain()  # a store that knows no conditions


def _can_create(fs: Any) -> bool:
    """Whether `pipe_file` of a filesystem takes mode "create"; fsspec has it since 2024.10."""
    function = getattr(type(fs), "_pipe_file", None) or type(fs).pipe_file
    return "mode" in inspect.signature(function).parameters


def _send(fs: Any, path: str, spool: BinaryIO, length: int, mode: str, conditions: dict[str, str]) -> None:
    spool.seek(0)
    if length < WHOLE_BYTES:
        options = {"mode": mode} if mode == "create" else {}
        fs.pipe_file(path, spool.read(), **options, **conditions)
        return
    target = fs.open(path, "xb" if mode == "create" else "wb")
    try:
        while block := spool.read(_BLOCK):
            target.write(block)
    except BaseException:  # Ctrl-C too must not make half an upload visible; it goes on at once
        target.discard()
        raise
    target.close()
