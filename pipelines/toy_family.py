# A whole model family of a third party, as a plug-in: omniprep build ... --plugin pipelines/toy_family.py
# docs/families.md goes through it step by step; toy_model.py beside it is a model to train.
# ruff: noqa
# fmt: off
import numpy as np
from omniprep.registry import REGISTRY, SupportsMultiModal, Field, Expansion, Reject

P = 32                                                  # one token per 32x32 pixels

def grid(ctx, meta):
    if meta.kind != "image" or min(meta.height, meta.width) < 1:
        raise Reject("bad_media", "empty image")
    s = min(1.0, (ctx.opt.max_side / max(meta.height, meta.width)))
    return max(1, round(meta.height * s / P)), max(1, round(meta.width * s / P))

def image_tokens(ctx, meta):                            # header only, no decode
    h, w = grid(ctx, meta); return h * w

def map_image(ctx, items):                              # items: list[DecodedImage], RGB, upright
    out, hw = [], []
    for it in items:
        h, w = grid(ctx, it.meta)
        a = np.asarray(it.image.resize((w * P, h * P)), np.uint8)
        a = a.reshape(h, P, w, P, 3).transpose(0, 2, 1, 3, 4).reshape(h * w, -1)
        out.append(a); hw.append((h, w))
    return {"pixels": np.concatenate(out), "image_hw": np.array(hw, np.int64)}

def max_image(ctx): return max(1, round(ctx.opt.max_side / P)) ** 2

def dummy(ctx, bin_len, counts):
    img = ctx.blank_image(ctx.opt.max_side, ctx.opt.max_side)
    n = min(counts.get("image", 0), (bin_len - 64) // max_image(ctx))
    return [{"role": "user", "content": "<image>" * n + "hi"},
            {"role": "assistant", "content": "ok"}], {"image": [img] * n}

def expand(ctx, sample):
    tid = ctx.token_id("<|img|>")
    return [Expansion("image", i, target=[tid], ids=[tid] * n)
            for i, n in enumerate(sample.token_counts["image"])]

@REGISTRY.register_family("toy_vl", hf_architectures=["ToyVL"], version="1")
@REGISTRY.register_image_input_mapper(map_image)
@REGISTRY.register_max_image_tokens(max_image)
@REGISTRY.register_token_counter("image", image_tokens)
@REGISTRY.register_dummy_data(dummy)
@REGISTRY.register_input_processor(expand)
class ToyVL(SupportsMultiModal):
    chat_template = "chatml"
    options = {"max_side": 1024}                        # anything else -> UnknownOptionError
    limits = {"image": None}                            # None = unlimited, absent = unsupported
    placeholders = {"image": "<|img|>"}
    fields = {"pixels": Field("image", "flat", dim=0, sizes=lambda d: d["image_hw"].prod(1)),
              "image_hw": Field("image", "item")}
