"""What a loop of one's own can take from `omniprep train`: its attention (`omniprep.packed_attention`)."""

from transformers import PreTrainedModel

from omniprep.errors import OmniprepError
from omniprep.train.attention_choice import choose_attention, use_attention
from omniprep.train.isolation import check_isolation
from omniprep.train.structure import derive_parts
from omniprep.train.varlen import HALF_TYPES
from omniprep.train.vision_text import has_mrope


def packed_attention(model: PreTrainedModel, attn: str = "auto") -> str:
    """Let a class of transformers, as it is, attend on bins as `omniprep train` does.

    Without it a loop of one's own has transformers' attention, which keeps rows apart by a mask of the whole bin
    (sdpa: 256 MiB for 16,384 tokens, every token against every other) and goes through the windows and images of a
    tower one by one. With it language model and towers take one call of a variable-length kernel for all rows, where
    the device and its 16 bits allow that, and torch's SDPA row by row elsewhere. A row gets what it would get alone, in
    each. docs/training.md has the measured difference.

    Call it once, before the first batch, with the model on its device and in its type; of an omni model give the part
    that trains (`model.thinker`). The model must have been loaded with transformers' sdpa, its default.

    Args:
        model: What the loop calls; its attention is changed in place. Weights stay as they are.
        attn: As `omniprep train --attn`: "auto", "varlen", "flash_attention_3", "flash_attention_2" or "sdpa".

    Returns:
        What "auto" has chosen.

    Raises:
        OmniprepError: The device or the model has no such attention, or rows of a bin see each other in this class by
            other ways than attention (state-space layers): `omniprep train` computes such layers row by row.
    """
    if attn not in ("auto", "varlen", "flash_attention_3", "flash_attention_2", "sdpa"):
        raise OmniprepError(
            f"packed_attention: attn is {attn!r}; auto, varlen, flash_attention_3, flash_attention_2 and sdpa are known"
        )
    weights = next(model.parameters())
    chosen = choose_attention(attn, model, weights.device, half=weights.dtype in HALF_TYPES)
    if chosen == "flex_attention":  # its mask is transformers', which a loop gets by loading the model with it
        chosen = "sdpa"
    use_attention(model, chosen, derive_parts(model).towers)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    check_isolation(model, vocabulary, mrope=has_mrope(model.config))
    return chosen
