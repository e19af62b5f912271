"""Errors in two kinds: what stops a command, and what rejects one row.

`OmniprepError` and its children are for the person at the terminal: the command line prints their text as one line and
exits 1 (`UsageError`: 2). `Reject` costs one row, never the build: it carries a stable code of `RejectCode`, which goes
to rows.parquet and rejected.jsonl. docs/rejects.md is generated from the enum below, so a code and its meaning live in
one place.
"""

import difflib
import os
import traceback
from collections.abc import Iterable
from enum import StrEnum


class OmniprepError(ValueError):
    """A mistake or a fault that ends the command; its text says where it is and what to do."""


class UsageError(OmniprepError):
    """An option or argument that cannot be used as given (exit status 2)."""


class DamagedDataError(OmniprepError):
    """A built dataset whose bytes are not what its index says; the text names shard and bin."""


class OtherPixelsError(DamagedDataError):
    """Files that a shard keeps in place of pixels do not give the build's pixels on this machine."""


def error_code(error: BaseException) -> str:
    """A stable word for what ended a command, for logs: the name of its class without "Error", in small letters.

    "failed" is any `OmniprepError` of no class of its own, "os" a file or store that failed, "defect" all else.
    """
    if type(error) is OmniprepError:
        return "failed"
    if isinstance(error, OmniprepError):
        name = type(error).__name__.removesuffix("Error")
        return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
    return "os" if isinstance(error, OSError) else "defect"


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM). Not a ValueError, so decoders cannot catch it."""


def unforeseen(where: str, error: BaseException) -> OmniprepError:
    """One line for an exception that nothing expects: its type and text, and the line of code that it comes from."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    code_line = f" at {os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}" if frame else ""
    text = " ".join(str(error).split())[:500]
    return OmniprepError(
        f"{where}: {type(error).__name__}{code_line}: {text or 'no message'}. This is a defect: please report it "
        "(OMNIPREP_TRACEBACK=1 shows where). What is finished stays: the same command again goes on from here"
    )


def did_you_mean(word: str, known: Iterable[str], folder: str = "") -> str:
    """A hint such as "; did you mean 'build'?" where another known word is close, else ""; `folder` precedes it."""
    names = {name.lower(): name for name in known if name != word}
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    return f"; did you mean {os.path.join(folder, names[close[0]])!r}?" if close else ""


def shown_name(name: str) -> str:
    r"""A name that UTF-8 cannot write, for messages: bytes of another encoding as \xe9, half characters as \ud83d."""
    letters = (f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in name)
    return "".join(letters).encode("utf-8", "backslashreplace").decode()


class RejectCode(StrEnum):
    """Why a row is not in the dataset; `doc` says when it happens, and what to do."""

    doc: str

    def __new__(cls, value: str, doc: str) -> "RejectCode":
        """Keep the documentation of a code on the code itself."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        return member

    # The row itself
    BAD_JSON = (
        "bad_json",
        "The line is not valid JSON in UTF-8, or names a key of an object twice, or nests lists and objects more than "
        "128 deep. Mend the line.",
    )
    LINE_TOO_LONG = (
        "line_too_long",
        "The line has more bytes than --max-line-bytes (1 GiB, if not set). It is passed over without being held in "
        "memory.",
    )
    BAD_ROW = "bad_row", "The row is not an object, or has no column that a chat can be read from."
    BAD_MESSAGE = (
        "bad_message",
        "A message has no content, or is not an object with a role and a content, or has a loss that is no number; or "
        "the messages are text that is no Python literal (JSON text with true, false or null); or it is a system "
        "message and --use-chat-template is off, which has no place for it.",
    )
    BAD_ROLE = (
        "bad_role",
        "A message has a role that is none of system, user, assistant, tool_call, tool_response, tool.",
    )
    EMPTY_ROW = "empty_row", "The row has no messages, or nothing is left of it."
    TEMPLATE_REFUSED = (
        "template_refused",
        "The checkpoint's own chat template refuses the row (users and assistants must take turns, it has no place for "
        "a system text, ...), fails on it or writes far too much; the message is the template's. Mend the row, or use "
        "--no-use-chat-template.",
    )
    ANSWER_NOT_FOUND = (
        "answer_not_found",
        "The checkpoint's own chat template rewrites an answer so that its place in the text, and with it what is "
        "trained, cannot be told; or it marks what the model writes ({% generation %}) in a number that does not fit "
        "the answers, while --loss-scale or a message's loss weighs them one by one.",
    )
    BAD_TOOLS = (
        "bad_tools",
        "`tools` is neither a JSON string nor a list of tools, or a tool call cannot be parsed; or "
        "--use-chat-template is off, which has no place for tools.",
    )
    BAD_OBJECTS = (
        "bad_objects",
        "`objects` (grounding) lacks boxes, has boxes of other than 2 or 4 finite numbers or references that are no "
        "text, or names an image that is absent.",
    )
    BAD_COLUMN = (
        "bad_column",
        "A column has a type that cannot be used (for example a number where media are expected), or text that is not "
        "valid Unicode (half of a surrogate pair, or bytes of another encoding), or the name of another column (after "
        "--columns, or but for upper case).",
    )
    WHERE_MISMATCH = (
        "where_mismatch",
        "--where compares a column with a literal of another type than the row's value, so whether the row is meant "
        "cannot be told. Mend the row, or test the type first (kind = 'scored' AND score > 1).",
    )
    BAD_OPTION = (
        "bad_option",
        "With --chat-template-kwargs apply: `chat_template_kwargs` of the row holds a value that cannot be used. With "
        "Qwen3-VL: the least area of an image is above the most.",
    )
    # Preferences
    NO_PARTNER = (
        "no_partner",
        "A preference row lacks one of its two answers (the column is empty, or the chat ends with a question); or, "
        "with --preference pairs, a row has no rejected answer; or, with --preference kto, no label; or, with "
        "--preference auto, it has neither, where most rows have. With --preference mixed, rows whose columns of "
        "preferences are empty are ordinary ones.",
    )
    BAD_PREFERENCE = (
        "bad_preference",
        "Columns of preferences from which no pair can be read: rejected_response is a list, chosen and rejected stand "
        "beside another answer or without a prompt, or a row has both a rejected answer and a label; or, with "
        "--preference auto, most rows are of another kind. Where these columns mean something else, --preference "
        "ignore does not read them.",
    )
    BAD_LABEL = ("bad_label", "The label of a row for KTO is none of true, false, 1 and 0.")
    EMPTY_ANSWER = ("empty_answer", "The preferred or the rejected answer, or the one with a verdict, is empty.")
    SAME_ANSWERS = (
        "same_answers",
        "The preferred and the rejected answer are equal, at least after --truncation, so nothing is preferred.",
    )
    PAIR_EXCEEDS_BIN = (
        "pair_exceeds_bin",
        "The two answers of a pair, each with its prompt, are together longer than the bin. Use a longer bin, smaller "
        "media, or --truncation with --max-length of half a bin.",
    )
    # Text
    SPECIAL_TOKEN_IN_TEXT = (
        "special_token_in_text",
        "The text contains a media token of the model literally, which would be taken for media; or any control token, "
        "with --special-tokens-in-text reject.",
    )
    ROW_TOO_LONG = (
        "row_too_long",
        "The row has more tokens than --max-length (default: the bin length). Use a longer bin, smaller media, or "
        "--truncation.",
    )
    ROW_EXCEEDS_BIN = "row_exceeds_bin", "After truncation the row still does not fit the bin."
    MEDIA_TRUNCATED = (
        "media_truncated",
        "Truncation would cut into, or drop, an image, audio or video. Media stay whole or the row is rejected.",
    )
    # Media against text
    PLACEHOLDER_MISMATCH = (
        "placeholder_mismatch",
        "The number of media placeholders left in the tokens differs from the number of media items; or, with "
        "--surplus-tags reject, the text has more media tags than the row has media.",
    )
    TOO_MANY_ITEMS = "too_many_items", "More items of one kind than --limit-mm-per-row allows."
    PROCESSOR_REFUSED = (
        "processor_refused",
        "The checkpoint's own processor refuses the row's media; the message is its own (family hf).",
    )
    UNSUPPORTED_MODALITY = "unsupported_modality", "The model family does not know this kind of media."
    # Finding media
    MEDIA_NOT_FOUND = (
        "media_not_found",
        "The media file does not exist. Paths are taken relative to the file that names them, then to each "
        "--media-root.",
    )
    MEDIA_OUTSIDE_ROOT = (
        "media_outside_root",
        "The media path leads outside the input's folder and every --media-root (after links and '..' are resolved).",
    )
    MEDIA_URL_FORBIDDEN = (
        "media_url_forbidden",
        "An http(s) URL without --allow-http, or one that leads to a private address.",
    )
    MEDIA_FETCH_FAILED = (
        "media_fetch_failed",
        "The store refuses this object, or a server of the web did not give it (after retries). A store that answers "
        "nobody ends the build instead.",
    )
    MEDIA_TOO_LARGE = "media_too_large", "The media file is larger than the limit."
    BAD_BASE64 = "bad_base64", "Inline media that is not valid base64."
    # Decoding media
    BAD_MEDIA = (
        "bad_media",
        "The file is empty, or is not of a kind that can be read; the message says what it is where that is known (a "
        "Git LFS pointer, an HTML page, HEIC where pillow-heif is not installed).",
    )
    DECODE_ERROR = "decode_error", "The file is damaged: its header is readable but its content is not."
    DECODE_MISMATCH = (
        "decode_mismatch",
        "What was decoded differs in size, length or frame count from what the header promised.",
    )
    DECODER_CRASH = "decoder_crash", "The decoder ended its process (segmentation fault or similar) on this file."
    DECODE_TIMEOUT = "decode_timeout", "Decoding did not end within the time limit."
    DECODE_MEMORY = "decode_memory", "Decoding needed more memory than a worker may use."
    ASPECT_RATIO = (
        "aspect_ratio",
        "One side of the image or video is more than 200 times the other; or, with Qwen2-VL, Qwen2.5-VL and Qwen3-VL, "
        "shrinking it to the maximum leaves less than one token of its shorter side.",
    )
    IMAGE_TOO_LARGE = (
        "image_too_large",
        "The header of an image, or of a video's frames, promises more pixels than the limit (a decompression bomb).",
    )
    AUDIO_TOO_SHORT = "audio_too_short", "The audio gives no token (at most 320 samples at 16 kHz, 20 ms)."
    AUDIO_TOO_LONG = (
        "audio_too_long",
        "The audio is longer than the model takes (300 s); the reference would cut it silently. See --long-audio. Or "
        "it is longer than is decoded at all: 24 hours, or 2 GiB of samples.",
    )
    BAD_AUDIO = "bad_audio", "The waveform holds values that are not finite."
    VIDEO_TOO_SHORT = "video_too_short", "The video has fewer than 2 frames."
    VIDEO_TOO_LONG = "video_too_long", "The video is longer than the limit."
    NO_VIDEO_STREAM = "no_video_stream", "The file given as video holds no video stream."
    NO_AUDIO_TRACK = (
        "no_audio_track",
        "--use-audio-in-video, but the video has no audio track (or is a list of frames). See --silent-video.",
    )
    BAD_VIDEO_OPTION = "bad_video_option", "fps, nframes or frame limits that this video cannot satisfy."
    DUPLICATE = (
        "duplicate",
        "With --dedup exact: a row before it has the same tokens, loss weights and media bytes; the message names it. "
        "This is no error: it counts neither for --max-error-rate nor for --on-error fail.",
    )
    INTERNAL_ERROR = (
        "internal_error",
        "The row made omniprep itself fail. This is a defect: please report it with the row.",
    )


class Reject(Exception):
    """Raised by anything that looks at one row; the build goes on without the row.

    Args:
        code: A `RejectCode`, or its string.
        message: What is wrong, with the item ("image 2 of 3: cat.png: ...").
    """

    def __init__(self, code: RejectCode | str, message: str) -> None:
        """Check the code, so that a misspelled one fails where it is written."""
        self.code = RejectCode(code)  # type: ignore[call-arg]  # by value, as enums are looked up
        # Messages quote rows and names of files, which may hold what UTF-8 cannot (lone surrogates); the plan, the
        # tables and the terminal take UTF-8 alone.
        self.message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(f"{self.code}: {self.message}")

    def __reduce__(self) -> tuple[type["Reject"], tuple[str, str]]:
        """Cross process borders (Ray) with both fields."""
        return Reject, (str(self.code), self.message)


def unexpected(error: Exception) -> Reject:
    """The reject for an exception that no code expects: a defect of omniprep, a decoder or a family's callback.

    One row must not end a build of millions; the code and the message say that it is a defect, and where.
    """
    if isinstance(error, MemoryError):
        return Reject(RejectCode.DECODE_MEMORY, f"there is not enough memory for the row ({error})")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno} {frames[-1].name})" if frames else ""
    return Reject(RejectCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}{where}")
