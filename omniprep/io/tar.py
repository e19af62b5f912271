"""Members of tar files, local or in a store: where each lies, so that it is read by range and nothing is unpacked."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from omniprep.errors import OmniprepError
from omniprep.io.files import open_input

TAR_MARK = ".tar!"
"""Between the path of a tar and the name of a member: shards/000.tar!images/a.jpg."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: its name, and the bytes [offset, offset + size) of the tar."""

    name: str
    offset: int
    size: int


class MemberName(str):
    """`TAR!NAME` as a media reference, with where the member lies.

    Only omniprep's reader of tars makes these, so a row of JSON cannot claim a range of bytes of its own choosing.
    """

    tar: str
    member: Member

    @classmethod
    def of(cls, tar: str, member: Member) -> "MemberName":
        """The reference to a member of a tar."""
        name = cls(f"{tar}!{member.name}")
        name.tar, name.member = tar, member
        return name


def read_members(uri: str) -> Iterator[tuple[Member, BinaryIO]]:
    """The members of a tar in their order, each with the open tar, which the caller may read anywhere.

    Raises:
        OmniprepError: As `members_of`; or the file cannot be opened.
    """
    try:
        with open_input(uri) as file:
            for member in members_of(file, uri):
                yield member, file
    except OSError as error:
        raise OmniprepError(f"{uri}: {error.strerror or error}") from error


def members_of(file: BinaryIO, label: str) -> Iterator[Member]:
    """The members of an open tar; folders, links and devices are left out.

    Raises:
        OmniprepError: The file is no tar, is damaged, or is cut short.
    """
    try:
        # With "r:" a compressed tar is an error: its members have no byte ranges.
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="replace") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps each header that it read: 1 KB a member
                if info.issparse():
                    raise OmniprepError(f"{label}: {info.name}: a sparse member; write the tar without --sparse")
                if info.isreg():
                    yield Member(info.name, info.offset_data, info.size)
            end = archive.offset
    except tarfile.TarError as error:
        raise OmniprepError(f"{label}: damaged, cut short, or not an uncompressed tar: {error}") from error
    file.seek(end)
    # tar ends with blocks of zeros. tarfile takes the end of the file, and a damaged header, for the end too: the
    # members behind would be lost without a word.
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise OmniprepError(
            f"{label}: cut short or damaged at byte {end:,}, where neither a member nor the end mark is; write it anew"
        )
