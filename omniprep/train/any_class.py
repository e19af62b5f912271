"""Any chat model of transformers on bins, as its class computes it: one wrapper, with nothing written for any class.

`load_any` takes the class that the checkpoint names and puts `AnyPacked` in front of it. What that changes:
- positions are those of a bin, plain ones unless the language model rotates by three axes;
- borders of rows reach the language model alone (`RowBorders`, shared with its attention layers): towers have borders
  of their own, or none, and attend as they were loaded;
- the output head is applied where a token is predicted alone: for 32k tokens and 256k words logits would be 16 GB in
  bf16. What the class does with its logits after the head (soft caps, factors) is found by trying (`find_finish`);
- layers that carry a state from row to row compute row by row (mixers.py).

Fields of a batch are arguments of the class's own forward pass. One that neither the class nor its towers take is
refused: transformers' classes take any keyword, and would lose it.
"""

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from omniprep.data.loss import logits_loss
from omniprep.data.model_check import forward_names
from omniprep.errors import OmniprepError
from omniprep.train.attention import RowBorders, uses_borders
from omniprep.train.loss import LossHead, TokenLoss, token_loss
from omniprep.train.mixers import evaluating, split_mixers
from omniprep.train.shared_tokens import with_features_placed
from omniprep.train.structure import find_decoder
from omniprep.train.vision_text import has_mrope, model_class, refuse_arguments

TYPES = "mm_token_type_ids"
Finish = Callable[[Tensor], Tensor]


class AnyPacked:
    """Goes before a class of transformers in the bases of a model."""

    gives_losses = True
    """Whether the forward pass gives the losses of `targets` (trainer.py)."""
    accepts_loss_kwargs = True
    never_used: ClassVar[tuple[str, ...]] = ()
    mrope = False
    """Whether the language model takes the three m-rope rows of position_ids."""
    takes: frozenset[str] = frozenset()
    """Names of media and of per-token arrays that the class takes (structure.py)."""
    trusts_code = False
    """Whether code of the checkpoint may run."""
    row_borders: RowBorders
    finish: Finish | None = None
    """What the class does to the head's logits; None: not found, so that the class makes its logits itself."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        row_lengths: tuple[int, ...] | None = None,
        logits_to_keep: Tensor | None = None,
        targets: Tensor | None = None,
        **given: Any,
    ) -> CausalLMOutputWithPast | TokenLoss:
        """Logits (1, K, words) of one bin at `logits_to_keep` (K), by default all; or the `TokenLoss` of `targets` (K).

        position_ids: (4, 1, L), positions in the row and the three m-rope rows; (1, L) for models without m-rope.
        cu_seq_lens_q: int32 (R+1) row borders; None: the bin is one row. `row_lengths` are they as host integers, where
        the caller has them.
        given: Media and per-token arrays, as the class's own forward pass takes them.
        """
        refuse_arguments(type(self).__name__, {n: v for n, v in given.items() if n not in self.takes})
        if cu_seq_lens_q is None:
            row_lengths = (input_ids.shape[1],)
            cu_seq_lens_q = torch.tensor([0, *row_lengths], dtype=torch.int32, device=input_ids.device)
        self.row_borders.edges = cu_seq_lens_q
        # Kept until the next bin: layers that are computed again in the backward pass read them.
        self.row_borders.lengths = tuple(row_lengths or cu_seq_lens_q.diff().tolist())
        arguments = {n: v for n, v in given.items() if n in self.takes and v is not None}
        arguments |= {"input_ids": input_ids, "position_ids": self.own_positions(position_ids), "use_cache": False}
        if targets is None and logits_to_keep is None:
            return cast(CausalLMOutputWithPast, self.class_forward(arguments))
        if self.finish is None:
            logits = self.class_forward(arguments).logits[0]
            logits = logits if logits_to_keep is None else logits.index_select(0, logits_to_keep)
            if targets is None:
                return CausalLMOutputWithPast(logits=logits[None])
            return TokenLoss(*logits_loss(logits, targets))
        states = self.last_states(arguments)
        if logits_to_keep is not None:
            states = states.index_select(0, logits_to_keep)
        head = self.head()
        if targets is None:
            return CausalLMOutputWithPast(logits=self.finish(head(states))[None])
        if self.finish is unchanged and isinstance(head, LossHead):
            return token_loss(states, head, targets)
        return token_loss(states, FinishedHead(head, self.finish), targets)

    def class_forward(self, arguments: Mapping[str, Any]) -> Any:
        """The forward pass of the class behind this one, on a bin."""
        return super().forward(**with_features_placed(self, in_type_of(self, arguments)))  # type: ignore[misc]

    def head(self) -> nn.Module:
        """The output head."""
        head: nn.Module | None = cast(PreTrainedModel, self).get_output_embeddings()
        if head is None:
            raise OmniprepError(f"{type(self).__name__} does not say which module is its head (get_output_embeddings)")
        return head

    def last_states(self, arguments: Mapping[str, Any]) -> Tensor:
        """Hidden states (L, H) of a bin as the class gives them to its head.

        The head gives back what it gets meanwhile, so that the class makes no logits.
        """
        head, kept = self.head(), list[Tensor]()
        before = head.__dict__.get("forward")  # of accelerate, say

        def keep(states: Tensor, *_: Any, **__: Any) -> Tensor:
            kept.append(states)
            return states

        head.forward = keep
        try:
            self.class_forward(arguments)
        finally:
            if before is None:
                del head.forward
            else:
                head.forward = before
        length = arguments["input_ids"].shape[1]
        if len(kept) != 1 or kept[0].shape[:2] != (1, length):
            shapes = [tuple(states.shape) for states in kept]
            raise OmniprepError(
                f"the head of {type(self).__name__} gets states of {shapes} for a bin of {length} tokens: the class "
                "does not compute one state for each token of the dataset, so that it cannot train on bins"
            )
        return kept[0][0]

    def own_positions(self, position_ids: Tensor | None) -> Tensor | None:
        """Positions of a bin as the class takes them."""
        if position_ids is None or position_ids.ndim < 3:
            return position_ids
        if not self.mrope:
            return position_ids[0]
        # The positions in the row, the first of four, tell transformers' own masks where rows begin.
        return (
            position_ids[1:] if len(position_ids) == 4 and uses_borders(cast(PreTrainedModel, self)) else position_ids
        )

    def bare(self) -> Any:
        """The model as the class behind this one, on the same modules."""
        bare = copy(self)
        bare.__class__ = type(self).__mro__[2]
        return bare

    @property
    def makes_mrope(self) -> bool:
        """Whether the class makes positions on three axes of what is in a row."""
        parts = (self, getattr(self, "base_model", None))
        return self.mrope and any(hasattr(part, "get_rope_index") for part in parts)

    @cached_property
    def processor(self) -> Any:
        """The checkpoint's processor."""
        path = cast(PreTrainedModel, self).config._name_or_path
        return transformers.AutoProcessor.from_pretrained(path, trust_remote_code=self.trusts_code)

    def plain_forward(self, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """The forward pass of the class behind this one on a row, as it is called with what AutoProcessor gives.

        That is with a mask and without positions (`position_ids` is left out): the class makes its own, so that stored
        positions which are wrong show in the logits.
        """
        self.row_borders.edges = self.row_borders.lengths = None
        bare = self.bare()
        known, ids = inspect.signature(bare.forward).parameters, kwargs["input_ids"]
        if "attention_mask" in known:
            kwargs.setdefault("attention_mask", torch.ones_like(ids))
        # Some processors give token types to those alone who ask; without them the class makes no positions of media.
        if self.makes_mrope and TYPES in known and TYPES not in kwargs and any("grid" in name for name in kwargs):
            kwargs[TYPES] = torch.tensor(self.processor.create_mm_token_type_ids(ids.tolist()), device=ids.device)
        return bare.forward(**in_type_of(self, kwargs))

    def generate(self, position_ids: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Token ids, generated by the class behind this one, with positions that it makes itself."""
        self.row_borders.edges = self.row_borders.lengths = None
        return cast(Tensor, self.bare().generate(**kwargs))

    def prepare(self) -> None:
        """Learn of this class what the forward pass needs to know, and share the borders with its language model."""
        model = cast(PreTrainedModel, self)
        decoder = find_decoder(model)
        base: Any = type(self).__mro__[2]
        needed = [
            parameter.name
            for parameter in inspect.signature(base.forward).parameters.values()
            if parameter.default is parameter.empty and parameter.name not in ("self", "input_ids", "args", "kwargs")
        ]
        if needed:
            raise OmniprepError(
                f"the forward pass of {base.__name__} (model type {model.config.model_type}) wants "
                f"{', '.join(needed)} of every row, also of one without media: it cannot train on bins of chats"
            )
        self.takes = forward_names(model, base) - NOT_OF_BATCHES
        self.mrope = has_mrope(model.config)
        self.row_borders = RowBorders()
        for module in decoder.modules():
            module.row_borders = self.row_borders  # type: ignore[assignment]
        kinds = inspect.signature(type(decoder).forward).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in kinds):
            decoder.register_forward_pre_hook(give_borders, with_kwargs=True)

    def prove(self, vocabulary: int) -> None:
        """Find what the class does behind its head, and let layers that mix rows compute each alone."""
        model = cast(PreTrainedModel, self)
        device, first_row = next(model.parameters()).device, 8
        ids = torch.arange(2 * first_row, device=device) * 7919 % min(vocabulary, 50000)
        bins = [ids.clone(), ids.clone()]
        bins[1][:first_row] = ids[:first_row].flip(0) + 1
        plain = torch.arange(first_row, device=device).repeat(2)[None]
        positions = plain.expand(4, 1, -1) if self.mrope else plain
        edges = torch.tensor([0, first_row, 2 * first_row], dtype=torch.int32, device=device)

        def run(number: int) -> Any:
            return self.forward(bins[number][None], positions, edges)

        with evaluating(model):
            try:
                split_mixers(find_decoder(model), self.row_borders, run, first_row)
                self.finish = find_finish(self.head(), model.config.get_text_config(), lambda: run(0))
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
                if isinstance(error, (OmniprepError, torch.OutOfMemoryError)):
                    raise
                reason = " ".join(str(error).split())[:200]
                raise OmniprepError(
                    f"{type(self).__name__} (model type {model.config.model_type}) fails on a bin of two rows of text, "
                    f"so that it cannot train on bins: {type(error).__name__}: {reason}"
                ) from error


NOT_OF_BATCHES = frozenset(
    {
        "self", "input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels",
        "use_cache", "output_attentions", "output_hidden_states", "return_dict", "cache_position", "logits_to_keep",
        "rope_deltas", "mm_encoder_outputs", "kwargs",
    }
)  # fmt: skip
"""Arguments of forward passes that are no media, or that the wrapper gives itself."""


def in_type_of(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with media of 16 bits, which some processors give, in the type of a model's weights.

    Few classes do it themselves. Floats of 32 bits stay: beside media of another type (`to_model`) they are seconds and
    sizes, which 16 bits would round.
    """
    weights = cast(torch.dtype, model.dtype)
    return {
        name: value.to(weights) if isinstance(value, Tensor) and value.dtype in HALF else value
        for name, value in arguments.items()
    }


HALF = (torch.bfloat16, torch.float16)


class FinishedHead(nn.Module):
    """An output head with what the class does to its logits."""

    def __init__(self, head: nn.Module, finish: Finish) -> None:
        super().__init__()
        self.parts = (head, finish)  # not a module of this one: the weights are the model's

    def forward(self, states: Tensor) -> Tensor:
        """Logits (…, words) of states (…, H)."""
        head, finish = self.parts
        return finish(head(states))


def unchanged(logits: Tensor) -> Tensor:
    """The logits of the head as they are."""
    return logits


def find_finish(head: nn.Module, config: Any, run: Callable[[], Any]) -> Finish | None:
    """What a class does to the logits of its head, tried on a bin; None where it is nothing that is known here."""
    kept: list[Tensor] = []
    # A copy: a class may change the logits of some words where they are (Chameleon's images).
    hook = head.register_forward_hook(lambda module, args, output: kept.append(output.clone()))
    try:
        final: Tensor = run().logits
    finally:
        hook.remove()
    if len(kept) != 1 or kept[0].shape != final.shape:
        return None
    raw = kept[0]
    for candidate in (unchanged, *finishes(config)):
        if torch.allclose(candidate(raw).float(), final.float(), rtol=1e-2 if raw.dtype != torch.float32 else 1e-5):
            return candidate
    return None


def finishes(config: Any) -> list[Finish]:
    """The functions that transformers' classes apply to logits, with the numbers of a configuration."""
    found: list[Finish] = []
    cap, factor, divisor = (
        getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
    )
    if cap:
        found.append(lambda logits: torch.tanh(logits / cap) * cap)
    if factor:
        found.append(lambda logits: logits * factor)
    if divisor:
        found.append(lambda logits: logits / divisor)
    return found


def give_borders(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A hook that gives a language model the borders of its rows, for kernels that take them."""
    borders: Any = module.row_borders
    if borders.edges is None or borders.lengths is None:
        return args, kwargs
    longest = max(borders.lengths)
    return args, kwargs | {
        "cu_seq_lens_q": borders.edges,
        "cu_seq_lens_k": borders.edges,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def load_any(path: str, names: Any, dtype: torch.dtype, attention: str, *, trust_remote_code: bool) -> PreTrainedModel:
    """Load a checkpoint as the class that its config.json names (`names`), ready for bins.

    With `trust_remote_code` transformers' own mapping chooses, which knows the code of the checkpoint.
    """
    cls: Any = chat_class(path, trust_remote_code=trust_remote_code) if trust_remote_code else model_class(names)
    if cls is None:
        raise OmniprepError(f"transformers has no class {names[0] if names else '(none named)'!r}")

    def load(name: str) -> Any:
        return cls.from_pretrained(path, dtype=dtype, attn_implementation=name, trust_remote_code=trust_remote_code)

    try:
        model = load(attention)
    except ValueError as error:  # a class, or a tower of it, that has no sdpa; its language model gets ours in any case
        if attention != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        model = load("eager")
    base = type(model)
    model.__class__ = type(base.__name__, (AnyPacked, base), {"__module__": base.__module__})
    model.trusts_code = trust_remote_code
    model.prepare()
    return cast(PreTrainedModel, model)


def chat_class(path: str, *, trust_remote_code: bool) -> Any:
    """The class of transformers' mappings that loads a checkpoint with code of its own."""
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    mapped = getattr(config, "auto_map", None) or {}
    names = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForCausalLM", "AutoModel")
    name = next((name for name in names if name in mapped), "AutoModelForImageTextToText")
    return getattr(transformers, name)
