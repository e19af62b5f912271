"""Every mistake in a family is an error of its own that names family, modality and fix (table of docs/families.md)."""

import json
import re
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import toy
from PIL import Image

from omniprep.compiler import build as run
from omniprep.compiler.encode.rows import MediaCache, encode_planned
from omniprep.compiler.plan.probe import item_limits
from omniprep.compiler.plan.rows import plan_rows
from omniprep.config import BuildConfig
from omniprep.errors import Reject, UsageError
from omniprep.families import errors
from omniprep.families.checks import check_packages
from omniprep.families.loading import load_families
from omniprep.families.records import FamilySpec
from omniprep.media.fetch import MediaRoots
from omniprep.registry import (
    REGISTRY,
    Decoded,
    Expansion,
    Field,
    Item,
    MediaMeta,
    ModelArch,
    Registry,
    SupportsMultiModal,
    TemplateMeta,
)
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import find_splits


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.write_checkpoint(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return toy.write_rows(tmp_path_factory.mktemp("rows"), 4).parent


@pytest.fixture(scope="module")
def base():
    load_families((str(toy.FAMILY),))
    return REGISTRY.families["toy_vl"].cls


@pytest.fixture
def family(model, base):
    """A function (class body, decorators) -> context of a family that inherits the toy's registrations."""

    def make(body=None, *decorators, options=(), bases=None):
        registry = Registry()
        cls = type("Odd", bases or (base,), dict(body or {}))
        for decorate in decorators:
            cls = decorate(registry)(cls)
        registry.register_family("odd", hf_architectures=["ToyVL"])(cls)
        spec = FamilySpec(model=str(model), options=tuple(options))
        record = registry.families["odd"]
        return record.cls(record, spec, {"architectures": ["ToyVL"]})

    return make


def encode(ctx, rows, images=("1.png",)):
    row = {
        "messages": [{"role": "user", "content": "<image>" * len(images)}, {"role": "assistant", "content": "x"}],
        "images": list(images),
    }
    config = BuildConfig(model="m", bin_length=4096)
    planned = plan_rows([row], ctx, config, MediaRoots(str(rows), (), False))[0]
    if isinstance(planned, Reject):
        raise planned
    return encode_planned(planned, ctx, config, MediaCache(0))


# Before a build
# ---------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken():
    registry = Registry()
    registry.register_family("one")(type("A", (SupportsMultiModal,), {}))
    with pytest.raises(errors.DuplicateFamilyError, match="'one' is registered already, by .*override=True"):
        registry.register_family("one")(type("B", (SupportsMultiModal,), {}))
    registry.register_family("one", override=True)(type("B", (SupportsMultiModal,), {}))
    assert registry.families["one"].cls.__name__ == "B"


def test_names_of_templates_and_architectures():
    registry = Registry()
    plain = TemplateMeta(default_system="plain")
    registry.register_template("mine", plain)
    registry.register_model_arch("mine", ModelArch(language_model=("llm",)))
    assert registry.named("template", "mine") is plain
    with pytest.raises(errors.DuplicateFamilyError, match="template 'mine'"):
        registry.register_template("mine", TemplateMeta())
    with pytest.raises(errors.UnknownTemplateError, match="'yours' is not registered; registered: chatml, mine"):
        registry.register_template("yours")
    with pytest.raises(errors.UnknownTemplateError, match="arch 'yours'.*registered: mine"):
        registry.named("arch", "yours")
    with pytest.raises(UsageError, match="agent_template 'reactor' is not known; known: hermes, react_en"):
        TemplateMeta(agent_template="reactor")


def test_an_unknown_family_lists_near_names_and_plug_ins():
    load_families((str(toy.FAMILY),))
    with pytest.raises(errors.UnknownFamilyError, match="did you mean 'qwen2_5_omni'"):
        REGISTRY.find("qwen25_omni", {})
    with pytest.raises(
        errors.UnknownFamilyError, match=r"'zzz' is not registered.*toy_vl \(--plugin .*toy_family.py\)"
    ):
        REGISTRY.find("zzz", {})
    with pytest.raises(errors.UnknownFamilyError, match=r"no family for architectures \['Nobody'\].*--plugin FILE.py"):
        Registry().find(None, {"architectures": ["Nobody"], "model_type": "nobody"})
    assert REGISTRY.find(None, {"architectures": ["Nobody"]}).name == "hf"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"limits": {"image": None, "audio": None}},
            "supports audio but registers no input mapper.*register_input_mapper",
        ),
        ({"placeholders": {}}, "no placeholder for image; add it to `placeholders`"),
        ({"fields": {}}, "no field for image; add what its mapper gives to `fields`"),
    ],
)
def test_a_missing_registration(family, body, said):
    with pytest.raises(errors.MissingRegistrationError, match=f"family 'odd'.*{said}"):
        family(body)


@pytest.mark.parametrize(
    ("missing", "call"),
    [("mapper", "input_mapper"), ("counter", "token_counter"), ("maximum", "max_multimodal_tokens")],
)
def test_each_registration_of_a_modality_is_needed(family, base, missing, call):
    toy_module = sys.modules[base.__module__]
    decorators = {
        "mapper": lambda r: r.register_image_input_mapper(toy_module.map_image),
        "counter": lambda r: r.register_token_counter("image", toy_module.image_tokens),
        "maximum": lambda r: r.register_max_image_tokens(toy_module.max_image),
    }
    body = {k: getattr(base, k) for k in ("limits", "placeholders", "fields", "options")}
    assert family(body, *decorators.values(), bases=(SupportsMultiModal,)).modalities == ("image",)
    del decorators[missing]
    with pytest.raises(
        errors.MissingRegistrationError, match=rf"supports image but registers no .*register_{call}\('image'"
    ):
        family(body, *decorators.values(), bases=(SupportsMultiModal,))


def test_only_images_have_a_default_mapper(family):
    body = {
        "limits": {"audio": None},
        "placeholders": {"audio": "<|img|>"},
        "fields": {"x": Field("audio", "item", dtype="int32", shape=())},
    }
    with pytest.raises(errors.MissingRegistrationError, match="only images have a default mapper"):
        family(
            body,
            lambda r: r.register_input_mapper("audio"),
            lambda r: r.register_token_counter("audio", lambda ctx, meta: 1),
            lambda r: r.register_max_multimodal_tokens("audio", 1),
        )


@pytest.mark.parametrize("most", [0, -1, True, 2.5, "many", None])
def test_a_maximum_that_is_no_count(most):
    with pytest.raises(errors.BadMaxTokensError, match="'image' must be an integer of at least 1"):
        Registry().register_max_image_tokens(most)


def test_a_maximum_function_that_gives_no_count(family):
    with pytest.raises(errors.BadMaxTokensError, match="family 'odd': the maximum tokens of a image.*not 0"):
        family({}, lambda r: r.register_max_image_tokens(lambda ctx: 0))


def test_an_option_that_the_family_does_not_have(family):
    with pytest.raises(errors.UnknownOptionError, match="no option 'max_size'; did you mean 'max_side'"):
        family(options=[("max_size", 1)])


def test_a_modality_that_is_none(family):
    for call in ("register_input_mapper", "register_max_multimodal_tokens", "register_token_counter"):
        with pytest.raises(errors.UnknownModalityError, match="'smell' is not known; known: image, audio, video"):
            getattr(Registry(), call)("smell", 1)
    with pytest.raises(errors.UnknownModalityError, match="'smell'"):
        family({"limits": {"smell": None}})
    with pytest.raises(errors.UnknownModalityError, match="family 'odd': field 'x' is of modality 'smell'"):
        family({"fields": {"x": Field("smell", "item")}})
    with pytest.raises(errors.UnknownModalityError, match="limit of image must be None or a count"):
        family({"limits": {"image": "many"}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_it\n", "ModuleNotFoundError.*line 1"),
        ("x = 1\ny = (\n", "SyntaxError.*line 2"),
        ("x = 1\nx.no_such()\n", "AttributeError.*line 2"),
    ],
)
def test_a_plug_in_that_cannot_be_imported(tmp_path, text, said):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(errors.PluginImportError, match=f"--plugin .*broken.py: {said}"):
        load_families((str(path),))
    with pytest.raises(errors.PluginImportError, match="no such file"):
        load_families((str(tmp_path / "absent.py"),))


def test_a_registration_while_a_build_runs():
    with REGISTRY.frozen_while(), pytest.raises(errors.RegistryFrozenError, match="before a build starts.*--plugin"):
        REGISTRY.register_family("late")
    assert not REGISTRY.frozen


def test_a_late_registration_is_named_by_its_decorator():
    # Not by the method that it writes, which the author of the plug-in never typed.
    late = {
        "register_input_mapper": lambda: REGISTRY.register_image_input_mapper(),
        "register_max_multimodal_tokens": lambda: REGISTRY.register_max_image_tokens(4),
        "register_token_counter": lambda: REGISTRY.register_token_counter("image", len),
        "register_tower_work": lambda: REGISTRY.register_tower_work("image", len),
        "register_input_processor": lambda: REGISTRY.register_input_processor(len),
        "register_positions": lambda: REGISTRY.register_positions(len),
        "register_dummy_data": lambda: REGISTRY.register_dummy_data(len),
        "register_template": lambda: REGISTRY.register_template("chatml"),
        "register_model_arch": lambda: REGISTRY.register_model_arch(ModelArch()),
    }
    for decorator, register in late.items():
        with REGISTRY.frozen_while(), pytest.raises(errors.RegistryFrozenError, match=f"^{decorator}: "):
            register()


@pytest.mark.parametrize("token", ["two words", "<|absent|>"])
def test_a_placeholder_that_is_not_one_token(family, token):
    with pytest.raises(errors.UnknownTokenError, match="family 'odd'.*must be one token"):
        family({"placeholders": {"image": token}})


@pytest.mark.parametrize("need", ["transformers>=99", "no-such-package>=1"])
def test_a_package_that_is_needed(need):
    registry = Registry()
    registry.register_family("odd", requires=[need])(type("Odd", (SupportsMultiModal,), {}))
    with pytest.raises(errors.MissingPackageError, match=f"'odd' needs {need}.*pip install '{need}'"):
        check_packages("odd", registry.families["odd"].requires)


def test_mistakes_before_a_build_are_usage_errors():
    for name in [name for name, cls in vars(errors).items() if getattr(cls, "__module__", "") == errors.__name__]:
        before = name not in {
            *("ConflictingKeyError", "UndeclaredFieldError", "TokenCountMismatchError", "MaxTokensExceededError"),
            *("DummyError", "CallbackError", "FamilyError"),
        }
        assert issubclass(getattr(errors, name), UsageError) == before, name


# While it runs
# ----------------------------------------------------------------------------------------------------------


def mapped(**change):
    def mapper(ctx, items):
        result = {"pixels": np.zeros((4, 3), np.uint8), "image_hw": np.array([[2, 2]]), **change}
        return {k: v for k, v in result.items() if v is not None}

    return lambda r: r.register_image_input_mapper(mapper)


def test_a_mapper_that_gives_what_is_not_declared(family, rows):
    with pytest.raises(errors.UndeclaredFieldError, match="family 'odd': the image mapper gives 'extra'.*declare it"):
        encode(family({}, mapped(extra=np.zeros(1))), rows)
    with pytest.raises(errors.UndeclaredFieldError, match="does not give 'image_hw', which `fields` declares"):
        encode(family({}, mapped(image_hw=None)), rows)


def test_a_mapper_that_gives_another_modalitys_argument(family, base, rows):
    fields = {**base.fields, "sound": Field("audio", "item")}
    with pytest.raises(errors.ConflictingKeyError, match="the image mapper gives 'sound', which belongs to audio"):
        encode(family({"fields": fields}, mapped(sound=np.zeros(1))), rows)


def test_units_that_differ_from_sizes(family, rows):
    with pytest.raises(errors.TokenCountMismatchError, match="gives 3 units of 'pixels', its `sizes` says 4"):
        encode(family({}, mapped(pixels=np.zeros((3, 3), np.uint8))), rows)


@pytest.mark.parametrize(
    ("expansions", "said"),
    [
        (lambda t, n: [Expansion("image", 0, [t], [t] * (n + 1))], "tokens of image 1, the token counter promised"),
        (lambda t, n: [], "no expansion for image 1"),
        (lambda t, n: [Expansion("image", 1, [t], [t])], "expands image 2, which is not there"),
        (lambda t, n: [Expansion("image", 0, [t], [t] * n)] * 2, "expands image 1, which is not there or was expanded"),
    ],
)
def test_expansions_that_disagree_with_the_counter(family, rows, expansions, said):
    def processor(ctx, sample):
        return expansions(ctx.token_id("<|img|>"), sample.token_counts["image"][0])

    with pytest.raises(errors.TokenCountMismatchError, match=f"family 'odd': the input processor.*{said}"):
        encode(family({}, lambda r: r.register_input_processor(processor)), rows)


def test_a_counter_above_the_maximum(family, rows):
    with pytest.raises(
        errors.MaxTokensExceededError, match="a image has 12 tokens, more than the registered maximum 3.*true upper"
    ):
        encode(family({}, lambda r: r.register_max_image_tokens(3)), rows)


@pytest.mark.parametrize(
    ("dummy", "said"),
    [
        (lambda ctx, n, counts: ([], {"image": [1, 2]}), "1 image items were asked of the dummy, it gives 2"),
        (lambda ctx, n, counts: [1], r"must give \(messages, media\)"),
    ],
)
def test_a_dummy_that_is_not_what_was_asked_for(family, dummy, said):
    with pytest.raises(errors.DummyError, match=said):
        family({}, lambda r: r.register_dummy_data(dummy)).dummy(4096, {"image": 1})


def test_no_dummy(family):
    with pytest.raises(errors.DummyError, match="registers no dummy data; add @REGISTRY.register_dummy_data"):
        family({"dummy_data": SupportsMultiModal.dummy_data}).dummy(64, {})


def test_stop_iteration_never_leaves_a_callback(family, rows):
    def processor(ctx, sample):
        return [next(iter([])) for _ in sample.items["image"]]

    with pytest.raises(errors.CallbackError, match="family 'odd': the input processor raised StopIteration"):
        encode(family({}, lambda r: r.register_input_processor(processor)), rows)
    with pytest.raises(errors.CallbackError, match="token counter of image raised StopIteration"):
        encode(family({}, lambda r: r.register_token_counter("image", lambda ctx, meta: next(iter([])))), rows)


FAULTY = {
    "register_max_image_tokens(1)": "image 1 of 1: family 'faulty': a image has 2 tokens.*maximum 1.*a true upper bound",
    "register_token_counter('image', lambda ctx, meta: next(iter([])))": "image 1 of 1: family 'faulty'.*StopIteration",
    "register_input_processor(lambda ctx, sample: [])": "family 'faulty'.*gives no expansion for image 1",
}


@pytest.mark.parametrize("decorator", FAULTY)
def test_a_fault_tells_the_row_that_showed_it(omniprep, model, tmp_path, monkeypatch, decorator):
    """Rows 1 and 2 are text; the image is in line 3, after a blank one, of a file that is read in several splits."""
    toy.write_rows(tmp_path, 4)
    plugin = tmp_path / "faulty.py"
    plugin.write_text(
        f"from omniprep.registry import REGISTRY\ntoy = REGISTRY.families['toy_vl'].cls\n"
        f"@REGISTRY.register_family('faulty')\n@REGISTRY.{decorator}\nclass Faulty(toy):\n    pass\n"
    )
    chat = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "x"}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        json.dumps({"messages": chat}) + "\n\n" + json.dumps({"messages": chat, "images": ["0.png"]}) + "\n"
    )
    monkeypatch.setattr(run, "list_inputs", partial(list_in_splits, run.list_inputs))
    options = ("--plugin", toy.FAMILY, "--plugin", plugin, "--family", "faulty", "--workers", 0, "--bin-length", 256)
    built = omniprep("build", rows, "--model", model, "--out", tmp_path / "out", *options)
    assert built.code == 1 and "Traceback" not in built.err
    assert re.search(f"rows.jsonl:3: {FAULTY[decorator]}", built.err), built.err


def list_in_splits(list_inputs, config, say):
    listed = list_inputs(config, say)
    return replace(listed, splits=find_splits(find_inputs(config.inputs), split_bytes=64))


# What is no error
# -------------------------------------------------------------------------------------------------------


def test_registrations_are_inherited_one_by_one(family, base, rows):
    ctx = family({}, lambda r: r.register_token_counter("image", lambda ctx, meta: 12))
    assert ctx.count("image", None) == 12 and ctx.maxima["image"] == 1024
    assert len(encode(ctx, rows).media["pixels"]) == 1
    assert family({}).count("image", MediaMeta(kind="image", width=64, height=64)) == 4  # the base has its own still


def test_a_hook_may_be_a_function(family):
    from omniprep.train.model import loading_hook

    def load(path, dtype, attention):
        return path, dtype, attention

    for hook in (load, staticmethod(load)):
        assert loading_hook(family({"load_model": hook}))("m", "float32", "sdpa") == ("m", "float32", "sdpa")


@pytest.mark.parametrize("kind", ["method", "static method"])
def test_boxes_in_pixels_of_the_resized_image(family, rows, kind):
    """`resized_image` may be a method, or a static method of (ctx, meta), as plug-ins have written it."""

    def resized_image(self, meta):
        return self.opt.max_side, 2 * meta.height

    ctx = family({"resized_image": resized_image if kind == "method" else staticmethod(resized_image)})
    row = {
        "messages": [{"role": "user", "content": "<image>where?"}, {"role": "assistant", "content": "<bbox>"}],
        "images": ["1.png"],  # 128 x 96
        "objects": {"ref": [], "bbox": [[64, 48, 128, 96]]},
    }
    planned = plan_rows([row], ctx, BuildConfig(model="m", bin_length=4096), MediaRoots(str(rows), (), False))[0]
    assert "(512,96),(1024,192)" in ctx.tokenizer.decode(planned.ids)


def test_a_method_in_the_place_of_a_decorator(family, base, rows):
    """Methods and decorators override each other by inheritance; a decorator leaves other modalities to the rest."""

    def count_tokens(self, modality, meta):
        assert isinstance(self, base) and modality == "image"
        return 12

    by_method = type("ByMethod", (base,), {"count_tokens": count_tokens, "expand": SupportsMultiModal.expand})
    assert family(bases=(by_method,)).count("image", None) == 12
    decorated = family({}, lambda r: r.register_token_counter("image", lambda ctx, meta: 6), bases=(by_method,))
    assert decorated.count("image", None) == 6
    body = {"limits": {"image": None, "audio": None}, "placeholders": {"image": "<|img|>", "audio": "<|im_end|>"}}
    body |= {"fields": {**base.fields, "x": Field("audio", "item", dtype="int32", shape=())}}
    sound = [
        lambda r: r.register_token_counter("audio", lambda ctx, meta: 3),
        lambda r: r.register_input_mapper("audio", lambda ctx, items: {}),
        lambda r: r.register_max_multimodal_tokens("audio", lambda ctx: 4),
    ]
    both = family(body, *sound, bases=(by_method,))
    assert both.count("audio", MediaMeta(kind="audio")) == 3 and both.count("image", None) == 12
    assert both.maxima == {"image": 1024, "audio": 4}


def test_positions_and_work_by_decorator(family, rows):
    plain = family()
    assert not plain.mrope and encode(plain, rows).position_ids is None
    item = Item("image", MediaMeta(kind="image", width=64, height=64), tokens=4)
    assert plain.work(item) == 4  # as many as it has tokens

    def positions(ctx, sample):
        return np.tile(np.arange(len(sample.ids), dtype=np.int32)[::-1], (3, 1))

    ctx = family(
        {},
        lambda r: r.register_positions(positions),
        lambda r: r.register_tower_work("image", lambda ctx, meta: meta.width * ctx.opt.max_side),
    )
    row = encode(ctx, rows)
    assert ctx.mrope and row.position_ids.tolist() == [list(range(len(row.input_ids)))[::-1]] * 3
    assert ctx.work(item) == 64 * 1024


def test_the_default_mapper_is_the_checkpoints_image_processor(model_dir):
    from transformers import AutoImageProcessor

    fields = {
        "pixel_values": Field("image", "flat", sizes=lambda mapped: mapped["image_grid_thw"].prod(1)),
        "image_grid_thw": Field("image", "item"),
    }
    body = {"limits": {"image": None}, "placeholders": {"image": "<|IMAGE|>"}, "fields": fields}
    registry = Registry()
    cls = registry.register_image_input_mapper()(type("Default", (SupportsMultiModal,), body))
    cls = registry.register_token_counter("image", lambda ctx, meta: 4)(registry.register_max_image_tokens(4)(cls))
    registry.register_family("default")(cls)
    ctx = cls(registry.families["default"], FamilySpec(model=str(model_dir)), {})
    image = Image.effect_noise((84, 56), 90).convert("RGB")
    ours = ctx.map_item("image", Decoded(MediaMeta(kind="image", width=84, height=56), image=image))
    theirs = AutoImageProcessor.from_pretrained(model_dir).preprocess([image], return_tensors="np")
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert [(c.name, c.kind, c.dtype) for c in ctx.columns] == [
        ("pixel_values", "flat", "float32"),
        ("image_grid_thw", "items", "int32"),
    ]


def test_decorators_of_two_bases_come_together(family, base):
    registry = Registry()
    body = {"limits": {"audio": None}, "placeholders": {"audio": "<|im_end|>"}}
    sound = type("Sound", (SupportsMultiModal,), body | {"fields": {"x": Field("audio", "item", dtype="int32")}})
    registry.register_token_counter("audio", lambda ctx, meta: 3)(sound)
    registry.register_input_mapper("audio", lambda ctx, items: {})(sound)
    registry.register_max_multimodal_tokens("audio", 4)(sound)
    both = {name: {**getattr(base, name), **getattr(sound, name)} for name in ("limits", "placeholders", "fields")}
    ctx = family(both, bases=(base, sound))
    assert ctx.count("audio", MediaMeta(kind="audio")) == 3 and ctx.maxima == {"image": 1024, "audio": 4}
    assert ctx.count("image", MediaMeta(kind="image", width=64, height=64)) == 4


def test_a_class_without_a_base_becomes_a_family(family, base):
    bare = type("Bare", (), {name: getattr(base, name) for name in ("limits", "placeholders", "fields", "options")})
    toy_module = sys.modules[base.__module__]
    ctx = family(
        {},
        lambda r: r.register_image_input_mapper(toy_module.map_image),
        lambda r: r.register_token_counter("image", toy_module.image_tokens),
        lambda r: r.register_max_image_tokens(toy_module.max_image),
        bases=(bare,),
    )
    assert ctx.count("image", MediaMeta(kind="image", width=64, height=64)) == 4 and ctx.opt.max_side == 1024


def test_templates_by_name_by_decorator_and_inherited(family):
    assert family().template == TemplateMeta()
    special = TemplateMeta(default_system="be brief")
    assert family({}, lambda r: r.register_template(special)).template is special
    with pytest.raises(errors.UnknownTemplateError, match="'nobodys'"):
        family({"chat_template": "nobodys"})


def test_limits_take_the_lower_and_reject_beyond(family, rows):
    ctx = family({"limits": {"image": 2}})
    assert item_limits(ctx, ("image=8",)) == {"image": 2} and item_limits(ctx, ("image=1",)) == {"image": 1}
    with pytest.raises(Reject, match="3 image items, the limit is 2") as caught:
        encode(ctx, rows, ("0.png",) * 3)
    assert caught.value.code == "too_many_items"
    for text in ("image", "image=x", "smell=1"):
        with pytest.raises(UsageError, match="write it as image=8"):
            item_limits(ctx, (text,))
    with pytest.raises(UsageError, match="family 'odd' takes no audio"):
        item_limits(ctx, ("audio=1",))


def test_worst_cases_beyond_the_bin_only_warn(family, rows):
    ctx = family()
    assert ctx.capacity_warnings(4096, {"image": None}) == []
    assert ctx.capacity_warnings(4096, {"image": 8}) == ["8 images may have 8192 tokens"]
    assert len(encode(ctx, rows, ("1.png",) * 5).input_ids) < 4096
