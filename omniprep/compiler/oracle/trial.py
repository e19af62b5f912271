"""A family against its oracle: every dummy chat through both, as files through the functions of the build."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omniprep.compiler.encode.single_row import encode_row
from omniprep.compiler.oracle.chats import Chat, as_row, dummy_chats, write_media
from omniprep.compiler.oracle.compare import Comparison, compare
from omniprep.compiler.oracle.processor import NoOracleError, Oracle, one_line
from omniprep.compiler.oracle.swift import REFERENCE, SwiftOracle
from omniprep.compiler.plan.rows import plan_rows
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject
from omniprep.families.base import Family
from omniprep.families.context import FamilyContext, resolve
from omniprep.families.kinds import Departure
from omniprep.families.registry import REGISTRY
from omniprep.media.fetch import MediaRoots

BIN_LENGTH = 1 << 20
"""No dummy chat is longer, however many tokens a family makes of five pictures."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one dummy chat."""

    chat: str
    tokens: int = 0
    comparison: Comparison = field(default_factory=Comparison)
    rejected: str = ""
    """Why omniprep rejects the row, which is no fault where others of its kind are taken."""
    refused: str = ""
    """Why the processor refuses it; omniprep rejects it too, or that is a fault."""


def oracle_of(ctx: FamilyContext) -> Oracle:
    """What a family is compared with; NoOracleError where the checkpoint has no processor that writes chats."""
    made = SwiftOracle if ctx.reference == REFERENCE else Oracle
    return made(ctx.spec.model, trust_remote_code=ctx.spec.trust_remote_code)


def chats_for(ctx: FamilyContext, oracle: Oracle, *, quick: bool) -> list[Chat]:
    """The dummy chats of a family; `quick`: those that a build tries."""
    chats = [chat for chat in dummy_chats(ctx.modalities) if chat.quick or not quick]
    return [chat for chat in chats if not chat.tools or oracle.writes_tools]


def try_chats(ctx: FamilyContext, oracle: Oracle, chats: Sequence[Chat]) -> Iterator[Trial]:
    """Each chat through the family and through its oracle."""
    with tempfile.TemporaryDirectory(prefix="omniprep-oracle-") as name:
        folder = Path(name)
        write_media(chats, folder, oracle.sampling_rate)
        for chat in chats:
            yield _try(ctx, oracle, chat, folder)


def family_without_options(ctx: FamilyContext) -> FamilyContext:
    """The family with the defaults of its options, since those of a build depart from the processor on purpose.

    `rope` alone is set: the rule of positions is compared with the installed transformers, not with release 4.57, which
    ms-swift runs on (tests/test_families.py holds that one).
    """
    rope = (("rope", "transformers5"),) if "rope" in ctx.options else ()
    return resolve(replace(ctx.spec, options=rope))


def _try(ctx: FamilyContext, oracle: Oracle, chat: Chat, folder: Path) -> Trial:
    rejected = refused = ""
    config = BuildConfig(model=ctx.spec.model, bin_length=BIN_LENGTH)
    try:
        ours = encode_row(as_row(chat), ctx, config, str(folder))
    except Reject as reject:
        rejected = f"{reject.code}: {reject.message}"
    except OmniprepError as error:
        return Trial(chat.name, comparison=Comparison(faults=[one_line(error)]))
    meant = {}
    try:
        text = "" if rejected else _other_text(ctx, oracle, chat, config, folder)
        if text:
            meant["text"] = _own_text(ctx) or (
                "the checkpoint's chat template writes another text than ms-swift's, which the family follows"
            )
        theirs = oracle.arguments(chat, folder, text)
    except ImportError as error:  # of the processor's own: the row was not judged
        raise NoOracleError(f"{oracle.name} needs a package: {one_line(error)[:200]}") from error
    except Exception as error:  # whatever a processor or a template raises is its way to refuse a row
        refused = f"{type(error).__name__}: {one_line(error)[:200]}"
    if rejected or refused:
        faults = [] if rejected else [f"the processor refuses the row, omniprep takes it ({refused})"]
        return Trial(chat.name, 0, Comparison(faults=faults), rejected, refused)
    comparison = compare(
        ours,
        theirs,
        oracle.positions(theirs) if ctx.mrope else None,
        departures=[
            *(d for d in ctx.departures if d.modality in ("", *chat.modalities)),
            *(
                _other_borders(ctx, _tokenizer(ctx, oracle), ours["input_ids"][0], theirs["input_ids"][0])
                if "text" in meant
                else ()
            ),
        ],
        may_end_early=ctx.renderer is None,
        forward_names=oracle.forward_names,
        position_names=oracle.position_names,
        rounded={column.name for column in ctx.columns if column.dtype == "bfloat16"},
        decode=_tokenizer(ctx, oracle).decode,
    )
    comparison.meant |= meant
    return Trial(chat.name, ours["input_ids"].shape[1], comparison)


def _other_text(ctx: FamilyContext, oracle: Oracle, chat: Chat, config: BuildConfig, folder: Path) -> str:
    """The row's own text, placeholders unexpanded, where it is ms-swift's and not the checkpoint's template's; else "".

    ms-swift has templates of its own; some checkpoints' differ from them (Qwen3-VL-Thinking writes an empty thought
    into every last answer). Then the processor is given the text, as it is where a family declares that its text is its
    own (`Departure("text")`). A plug-in that has such a template without a word is no such case.
    """
    follows = ctx.reference == REFERENCE and any(_writes_as(ctx, record.cls) for record in REGISTRY.families.values())
    if not follows and not _own_text(ctx):
        return ""
    planned = plan_rows([as_row(chat)], ctx, config, MediaRoots(str(folder), (), False))[0]
    assert not isinstance(planned, Reject)  # the row was encoded just now
    text = str(_tokenizer(ctx, oracle).decode(planned.ids))
    return "" if oracle.template_text(chat).startswith(text) else text


def _tokenizer(ctx: FamilyContext, oracle: Oracle) -> Any:
    """The checkpoint's tokenizer: the processor's, which is loaded already, where it has one (another takes 0.9 s)."""
    return getattr(oracle.processor, "tokenizer", None) or ctx.tokenizer


def _own_text(ctx: FamilyContext) -> str:
    """Why the family's text is not that of the checkpoint's chat template; "" where it says nothing."""
    return next((departure.reason for departure in ctx.departures if departure.what == "text"), "")


def _other_borders(ctx: FamilyContext, tokenizer: Any, ours: Any, theirs: Any) -> list[Departure]:
    """What differs where the same text was tokenized whole: a `TemplateMeta` keeps answers apart from its own texts."""
    if not _own_text(ctx) or ours.tolist() == theirs.tolist() or tokenizer.decode(ours) != tokenizer.decode(theirs):
        return []
    reason = "the template's texts and the answers are tokenized apart, as ms-swift does"
    return [Departure(what=what, reason=reason) for what in ("input_ids", "positions")]


def _writes_as(ctx: FamilyContext, cls: type[Family]) -> bool:
    """Whether a family writes text as a family of omniprep's own does."""
    own = cls.__module__.startswith("omniprep.families.") and cls.reference == REFERENCE
    same = cls.chat_template == ctx.template and cls.tags == ctx.tags and cls.placeholders == ctx.placeholders
    return own and same and ctx.cls.tag is cls.tag and ctx.renderer is cls.renderer


def unfounded_rejects(chats: Sequence[Chat], trials: Sequence[Trial]) -> list[Trial]:
    """Rejected chats of a kind (text, a modality) of which omniprep takes none, though the processor does."""
    taken = {modality for chat, trial in zip(chats, trials, strict=True) if not trial.rejected
             for modality in (chat.modalities or {"text"})}  # fmt: skip
    return [
        trial
        for chat, trial in zip(chats, trials, strict=True)
        if trial.rejected and not trial.refused and not taken & (chat.modalities or {"text"})
    ]
