"""The options of a build: one frozen record, the same names in YAML, on the command line and in the manifest.

The record has three parts, by who may set them. `RowOptions` is plain data and may come from a dataset that a stranger
made; `Trust` lets code run and opens folders and the network, and comes from the command line alone; `BuildConfig`
adds where a build reads and writes, and how it is run.

The command line is generated from these classes (a field is an option, the text under it the help), so an option exists
once. `SHAPING` names the fields that a shard's bytes depend on: their hash decides whether a build may be continued.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from omniprep.errors import UsageError, shown_name
from omniprep.rows.columns import Preference, parse_columns
from omniprep.rows.where_parser import parse_where

Switch = Literal["auto", "on", "off"]
"""An option that is chosen automatically unless it is given: on the command line `--NAME`, `--NAME on`, `--no-NAME` or
`--NAME off`; in YAML true and false too."""

Workers = int | Literal["auto"]
"""How many workers run the tasks of a build; 0 is this process."""

PixelCodecName = Literal["delta", "source", "raw", "webp", "jxl"]
"""Each but "raw" is the module of that name in omniprep/shards/codecs/."""


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """The options that shape rows, bins and shards by their value alone.

    This is what a dataset or a run says of how it was made, and what may be taken from one that a stranger made:
    no field holds the name of a file or a host, and none lets code run (those are in `Trust` and in `BuildConfig`).
    """

    bin_length: int = 0
    """Tokens a bin holds."""
    seed: int = 0
    """Seed of the order of rows in bins and of bins in shards."""
    split: str | None = None
    """Split to read of inputs that have splits and name none (INPUT:NAME); default: train."""
    max_line_bytes: int = 1 << 30
    """Maximum length of a line of JSON; longer lines are rejected without being held in memory."""

    max_length: int | None = None
    """Maximum tokens of a row after expansion (default: the bin length)."""
    truncation: Literal["raise", "left", "right"] = "raise"
    """What to do with a longer row: reject it, or cut its left or right end. A row whose media would be cut is
    rejected."""
    pad_rows_to: int = 0
    """End each row with pad tokens, to a multiple of so many tokens, so that context and sequence parallelism cut every
    row evenly: the least common multiple of 2*CP and CP*TP. They are not learned, and count as tokens (0: none)."""
    loss_scale: str | None = None
    """Loss strategy: default, last_round, all, ignore_empty_think, hermes, react, qwen, agentflan, alpha_umi, or a
    chain such as last_round+hermes (default: default; of preference rows last_round)."""
    preference: Preference = "auto"
    """Preference rows: rows with a rejected answer (rejected_response, rejected_messages, or chosen and rejected), and
    rows with a label that is true or false (KTO). auto: as the columns of a row say, and rows of other kinds than most
    are rejected; pairs, kto: reject every other row; mixed: ordinary rows may stand beside them; ignore: do not read
    these columns."""
    system: str | None = None
    """System prompt for rows that have none (default: the family's)."""
    use_chat_template: bool = True
    """Off for pre-training text: no roles, loss on all tokens."""
    template_date: str | None = None
    """Day (YYYY-MM-DD) that a chat template takes for today, where it writes the date (default: the day on which the
    build began)."""
    columns: tuple[str, ...] = ()
    """Rename a column of the rows before they are read, as NEW=OLD (images=image_paths); content.image=path renames a
    key of typed content items."""
    where: str | None = None
    """Read only rows for which this expression on their columns is true, such as "lang = 'en' AND score >= 0.5"."""
    dedup: Literal["none", "exact"] = "none"
    """Reject a row whose tokens, loss weights and media bytes are those of a row before it. Reads all media files
    while planning."""
    split_by: Literal["none", "rows"] = "none"
    """Build a second dataset beside --out, OUT-eval, of the share --eval-fraction of the rows, chosen by a hash of each
    row's text, names of media and the seed."""
    eval_fraction: float = 0.0
    """Share of the rows that --split-by rows puts into OUT-eval, such as 0.02."""
    part: Literal["all", "train", "eval"] = "all"
    """Which rows of --split-by this dataset has; set by the build."""
    chat_template_kwargs: Literal["ignore", "apply"] = "ignore"
    """The rows' own limits of pixels and frames, and variables of the chat template, in the column of this name:
    ignored as in the reference, or used."""

    max_pixels: int | None = None
    """Maximum pixels of an image after resizing (MAX_PIXELS of the reference)."""
    min_pixels: int | None = None
    """Minimum pixels of an image after resizing (MIN_PIXELS)."""
    video_max_pixels: int | None = None
    """Maximum pixels of a video frame (VIDEO_MAX_PIXELS)."""
    video_min_pixels: int | None = None
    """Minimum pixels of a video frame (VIDEO_MIN_PIXELS)."""
    video_total_pixels: int | None = None
    """Maximum pixels of all frames of a video (VIDEO_TOTAL_PIXELS)."""
    fps: float | None = None
    """Frames a second taken from a video (FPS; default 2)."""
    fps_min_frames: int | None = None
    """Minimum frames taken from a video (FPS_MIN_FRAMES; default 4)."""
    fps_max_frames: int | None = None
    """Maximum frames taken from a video (FPS_MAX_FRAMES; default 768)."""
    use_audio_in_video: bool = False
    """Use the audio of videos too, interleaved with their frames (USE_AUDIO_IN_VIDEO)."""
    bbox_format: Literal["legacy", "new"] | None = None
    """How grounding boxes are written (QWENVL_BBOX_FORMAT; default: the family's, legacy for the Qwen families)."""
    norm_bbox: Literal["none", "norm1000"] | None = None
    """Units of boxes: pixels of the resized image, or thousandths (default: the family's)."""
    limit_mm_per_row: tuple[str, ...] = ()
    """Maximum items of a modality in a row, such as image=8; rows with more are rejected."""

    video_timing: Literal["reference", "actual"] = "reference"
    """Seconds between video grid steps in m-rope: 1.0 as the reference has it, or the true 2 / sampled fps."""
    exif: Literal["ignore", "apply"] | None = None
    """Whether images are rotated as their EXIF orientation says (default: as the family's reference; ms-swift ignores
    it, AutoProcessor applies it)."""
    alpha: Literal["drop", "white"] = "drop"
    """What to do with transparency: drop it as the reference does, or blend it onto white."""
    silent_video: Literal["reject", "skip-audio"] = "reject"
    """With --use-audio-in-video, what to do with a video that has no audio."""
    long_audio: Literal["reject", "truncate"] = "reject"
    """What to do with audio beyond the model's 300 s (the reference cuts it silently)."""
    audio_decoder: Literal["auto", "ffmpeg", "pyav"] = "auto"
    """Decoder of the audio of videos, and of m4a: the ffmpeg program (as the reference) if it is installed, else
    PyAV."""
    surplus_tags: Literal["literal", "reject"] = "literal"
    """What to do with more media tags than media: keep the surplus as text as the reference does, or reject the row."""
    special_tokens_in_text: Literal["allow", "reject"] = "allow"
    """What to do with control tokens typed in text (media tokens always reject the row)."""

    shard_size: int | None = None
    """Size of a shard in bytes, about (default: a 64th of the dataset, but no less than 4 MiB and no more than
    512 MiB)."""
    pixel_codec: PixelCodecName = "delta"
    """How pixels are stored: without loss as delta (a third of the bytes on photographs, loaded by a core at a gigabyte
    a second), raw bytes, WebP or JPEG XL (as small as delta, slower to load); or not at all: source keeps the files
    themselves (the smallest), and what loads them decodes, with the libraries of the build."""
    max_bin_patches: int | None = None
    """Maximum vision patches in a bin, which bounds the memory of the vision tower."""
    max_bin_audio_frames: int | None = None
    """Maximum audio frames in a bin, which bounds the memory of the audio tower."""
    family: str | None = None
    """Model family (default: found from the checkpoint's config)."""
    family_option: tuple[str, ...] = ()
    """Option of the family, such as max_side=512; `omniprep families` lists them."""

    def __post_init__(self) -> None:
        """Refuse values that no build could use."""
        checks: list[tuple[bool, str]] = [
            (0 <= self.bin_length <= MOST_TOKENS, f"--bin-length must be from 1 to {MOST_TOKENS:,}"),
            (self.seed >= 0, "--seed must be 0 or more"),
            (self.max_length is None or self.max_length > 0, "--max-length must be positive"),
            (self.pad_rows_to >= 0, "--pad-rows-to must be 0 or more"),
            (
                self.pad_rows_to < 2 or self.bin_length % self.pad_rows_to == 0,
                f"--pad-rows-to {self.pad_rows_to}: --bin-length must be a multiple of it, else full rows do not fit",
            ),
            (self.max_line_bytes > 0, "--max-line-bytes must be positive"),
            (self.shard_size is None or self.shard_size > 0, "--shard-size must be positive"),
            (self.fps is None or self.fps > 0, "--fps must be positive"),
            (self.use_chat_template or not self.system, "--use-chat-template off has no place for --system"),
        ]
        checks += [
            (0 <= self.eval_fraction < 1, "--eval-fraction is a share, from 0 to less than 1"),
            (
                (self.split_by == "rows") == (self.eval_fraction > 0),
                "--split-by rows and --eval-fraction need each other",
            ),
            (self.part == "all" or self.split_by == "rows", "a part of the rows is one of --split-by rows"),
        ]
        checks += [
            (value is None or value > 0, f"--{name.replace('_', '-')} must be positive")
            for name in PIXEL_OPTIONS
            for value in [getattr(self, name)]
        ]
        checks.append((_is_day(self.template_date), "--template-date must be a day as YYYY-MM-DD"))
        _refuse(checks)
        parse_columns(self.columns)

    @property
    def loss_strategy(self) -> str:
        """The loss strategy of ordinary rows; whether a build's tokens have weights follows from it for all rows."""
        return self.loss_scale or "default"

    @property
    def preference_loss_strategy(self) -> str:
        """That of preference rows: the reference's rlhf trains the last round alone unless it is told otherwise.

        Source: swift/llm/argument/rlhf_args.py of ms-swift 3.9.3.
        """
        return self.loss_scale or "last_round"

    @property
    def row_limit(self) -> int:
        """Longest row in tokens."""
        return self.max_length or self.bin_length

    @property
    def stored_limit(self) -> int:
        """Longest row in tokens, with its pad tokens."""
        return self.row_limit + (-self.row_limit % self.pad_rows_to if self.pad_rows_to else 0)


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What lets code run, or opens folders and the network. Given on the command line at hand, or not at all.

    Nothing of it is ever taken from a dataset, a checkpoint or a run: their writer would decide what runs here.
    """

    media_root: tuple[str, ...] = ()
    """Further folder that may hold media, besides that of the file that names them."""
    allow_http: bool = False
    """Fetch media from http(s) URLs (public addresses only)."""
    plugin: tuple[str, ...] = ()
    """Python file that registers model families."""
    trust_remote_code: bool = False
    """Let the checkpoint's own Python code run when its tokenizer, or a model of it, is loaded."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig(RowOptions, Trust):
    """What `omniprep build` and `omniprep plan` take."""

    inputs: tuple[str, ...] = ()
    """Chats: .jsonl (also .gz, .zst), .json, .parquet, globs, folders, saved datasets; local or any fsspec URI. NAME of
    INPUT:NAME is a split, N of INPUT#N how many rows to draw."""
    model: str = ""
    """Checkpoint whose tokenizer, processor settings and config shape the rows: a folder or a Hub name."""
    out: str = ""
    """Folder (or URI) of the built dataset."""

    workers: Workers = "auto"
    """Ray workers. auto: as many as this machine, or the Ray cluster, has CPUs; work of a few seconds runs in this
    process. 0 runs everything in this process, without Ray. The bytes are the same with any number."""
    ray_address: str | None = None
    """Join a running Ray cluster ("auto", or its address; default: that of RAY_ADDRESS) instead of starting a local
    one."""
    overwrite: bool = False
    """Discard what an earlier build left in --out."""

    on_error: Literal["quarantine", "fail"] = "quarantine"
    """Reject bad rows and continue, or stop at the first."""
    max_error_rate: float = 1.0
    """Stop when more than this share of the rows is rejected (checked when all rows are planned, and at the end)."""

    decode_timeout: float = 600.0
    """Seconds in which the media of one row must be read and decoded, or the row is rejected; 0: no limit."""
    decode_memory: int = 8 << 30
    """Memory in bytes for one row when rows are tried one by one after a crash; rows that need more are rejected."""

    def __post_init__(self) -> None:
        """Refuse values that no build could use."""
        super().__post_init__()
        _refuse(
            [
                (
                    self.workers == "auto" or (isinstance(self.workers, int) and self.workers >= 0),
                    "--workers must be auto, or 0 or more",
                ),
                (0 <= self.max_error_rate <= 1, "--max-error-rate is a share between 0 and 1"),
                (self.decode_timeout >= 0, "--decode-timeout must be 0 or more"),
                (self.decode_memory > 0, "--decode-memory must be positive"),
            ]
        )
        if self.where is not None:
            parse_where(self.where)
        for name in (*self.inputs, *self.media_root, self.out, self.model):
            _refuse_credentials(name)
        for field in dataclasses.fields(self):
            option = "" if field.name == "inputs" else f"--{field.name.replace('_', '-')}"
            refuse_undecoded(getattr(self, field.name), option)


def build_config(
    rows: RowOptions, trust: Trust, *, model: str, inputs: tuple[str, ...] = (), out: str = ""
) -> BuildConfig:
    """The options that make rows as a dataset's or run's, with what this command line allows.

    `model` is one that the user named, or that `omniprep.inspect.trust` let pass.
    """
    values: dict[str, Any] = {field.name: getattr(rows, field.name) for field in dataclasses.fields(RowOptions)}
    values |= {field.name: getattr(trust, field.name) for field in dataclasses.fields(Trust)}
    return BuildConfig(**values, model=model, inputs=inputs, out=out)


MOST_TOKENS = (1 << 31) - 1
"""Of a bin: offsets of rows in it are 32-bit numbers (cu_seqlens)."""


def _refuse(checks: list[tuple[bool, str]]) -> None:
    for good, text in checks:
        if not good:
            raise UsageError(text)


def _is_day(text: str | None) -> bool:
    try:
        return text is None or date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


_CREDENTIALS = re.compile(
    r"://[^/]*@|[?&](X-Amz-|X-Goog-|AWSAccessKeyId|sig=|signature=|token=|access_token=)", re.IGNORECASE
)


def refuse_undecoded(value: object, option: str = "") -> None:
    """Names and options go into manifests and the facts of runs, which are UTF-8: other bytes are refused."""
    for text in value if isinstance(value, tuple) else (value,):
        try:
            str(text).encode()
        except UnicodeEncodeError as error:
            where = f"{option} {shown_name(str(text))}".lstrip()
            raise UsageError(f"{where}: not valid UTF-8; rename the file or folder") from error


def _refuse_credentials(uri: str) -> None:
    """Names go into the manifest, the row table and messages: secrets are refused, and not repeated."""
    if "://" in uri and _CREDENTIALS.search(uri):
        shown = uri.split("://")[0] + "://…@" + uri.split("://", 1)[1].split("?")[0].rsplit("@", 1)[-1]
        raise UsageError(
            f"{shown}: credentials do not belong in a URI; give them in the environment or the store's config"
        )


PIXEL_OPTIONS = (
    "max_pixels",
    "min_pixels",
    "video_max_pixels",
    "video_min_pixels",
    "video_total_pixels",
    "fps_min_frames",
    "fps_max_frames",
)
# What may change between two runs of one build without changing a byte of its shards.
_FREE = {"out", "workers", "ray_address", "overwrite", "on_error", "max_error_rate", "decode_timeout", "decode_memory"}


def shaping(config: BuildConfig) -> dict[str, Any]:
    """The options that a shard's bytes depend on, as JSON types."""
    return _as_json(config, {field.name for field in dataclasses.fields(config)} - _FREE)


def row_options_as_json(options: RowOptions) -> dict[str, Any]:
    """The fields of `RowOptions` as JSON types; `typed_record(RowOptions, ...)` reads them again."""
    return _as_json(options, {field.name for field in dataclasses.fields(RowOptions)})


def _as_json(options: RowOptions, names: Collection[str]) -> dict[str, Any]:
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name in names}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def config_hash(config: BuildConfig) -> str:
    """SHA-256 (hex) over `shaping(config)`."""
    return hashlib.sha256(json.dumps(shaping(config), sort_keys=True).encode()).hexdigest()
