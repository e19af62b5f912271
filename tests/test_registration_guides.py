"""Plug-in files in the words of ms-swift's custom model guide and vLLM's old "Enabling multimodal inputs"."""

import json
import re
import shutil
import textwrap

import pytest
import torch
import toy

from omniprep import PackedDataset
from omniprep.errors import UsageError
from omniprep.families import errors
from omniprep.families.base import Family
from omniprep.families.loading import load_families
from omniprep.families.records import FamilySpec
from omniprep.families.rowwise import Rowwise
from omniprep.registry import (
    INPUT_REGISTRY,
    MULTIMODAL_REGISTRY,
    REGISTRY,
    Model,
    ModelArch,
    ModelGroup,
    ModelMeta,
    MultiModelKeys,
    Registry,
    SupportsMultiModal,
    TemplateMeta,
    get_model_tokenizer_with_flash_attn,
    resolve_family,
)
from omniprep.train.checkpoint import complete

VLLM = toy.FAMILY.read_text().replace("@REGISTRY.register_image", "@MULTIMODAL_REGISTRY.register_image")
VLLM = VLLM.replace("@REGISTRY.register_max", "@MULTIMODAL_REGISTRY.register_max")
VLLM = re.sub("@REGISTRY.register_(dummy_data|input_processor)", r"@INPUT_REGISTRY.register_\1", VLLM)
VLLM = VLLM.replace("import REGISTRY,", "import INPUT_REGISTRY, MULTIMODAL_REGISTRY, REGISTRY,")
TEMPLATE = """
    register_template(
        TemplateMeta(
            template_type='custom',
            prefix=['[SYS]{{SYSTEM}}\\n'],
            prompt=['[USER]{{QUERY}}\\n[BOT]'],
            chat_sep=['\\n']))
"""
SWIFT = f"""
    from omniprep.registry import (
        Model, ModelGroup, ModelMeta, TemplateMeta, get_model_tokenizer_with_flash_attn, register_model,
        register_template)
    {TEMPLATE}
    register_model(
        ModelMeta(
            model_type='custom',
            model_groups=[ModelGroup([Model('Some/Custom-4B', 'some/Custom-4B')])],
            template='custom',
            get_function=get_model_tokenizer_with_flash_attn,
            ignore_patterns=['nemo']))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return toy.write_checkpoint(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture
def plugin(tmp_path):
    def write(text):
        path = tmp_path / "my_register.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def chat(path, *turns, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": "assistant" if n % 2 else "user", "content": turn} for n, turn in enumerate(turns)]
    with path.open("a") as file:
        file.write(json.dumps({"messages": messages}) + "\n")


def test_the_words_of_vllms_guide_make_the_same_rows(omniprep, checkpoint, plugin, tmp_path):
    assert MULTIMODAL_REGISTRY is INPUT_REGISTRY is REGISTRY and VLLM.count("MULTIMODAL_REGISTRY.") == 2
    assert VLLM.count("INPUT_REGISTRY.register") == 2
    rows = toy.write_rows(tmp_path, 6)
    ids = []
    for number, file in enumerate((toy.FAMILY, plugin(VLLM))):
        out = tmp_path / f"packed{number}"
        options = ("--model", checkpoint, "--plugin", file, "--bin-length", 256, "--workers", 0, "--out", out)
        done = omniprep("build", rows, *options)
        assert done.code == 0, done.err
        ids.append([row["input_ids"].tolist() for row in PackedDataset(str(out))])
    assert ids[0] == ids[1]


def test_the_model_of_ms_swifts_guide(omniprep, checkpoint, plugin, tmp_path):
    """Text and labels as ms-swift 3.9.3 writes them: the suffix is eos unless it is given, and is trained."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    other = "{% for message in messages %}{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": other}))
    rows = tmp_path / "rows.jsonl"
    chat(rows, "hi", "ok", "more", "yes", system="be brief")
    chat(rows, "hi", "ok")
    options = ("--model", model, "--plugin", plugin(SWIFT), "--family", "custom", "--bin-length", 64)
    done = omniprep("build", rows, *options, "--workers", 0, "--out", tmp_path / "packed")
    assert done.code == 0, done.err
    ds = PackedDataset(str(tmp_path / "packed"))
    source = ds.rows.column("source")[0].as_py()
    tokenizer = resolve_family(str(model), "custom", (str(tmp_path / "my_register.py"),)).tokenizer
    first, second = ds.row(source, 1), ds.row(source, 2)
    assert tokenizer.decode(first["input_ids"][0]) == (
        "[SYS]be brief\n[USER]hi\n[BOT]ok\n[USER]more\n[BOT]yes<|im_end|>"
    )
    assert tokenizer.decode(first["input_ids"][first["labels"] >= 0]) == "okyes<|im_end|>"
    assert tokenizer.decode(second["input_ids"][0]) == "[SYS]\n[USER]hi\n[BOT]ok<|im_end|>"


def test_a_model_takes_over_the_family_of_its_architectures(plugin, model_dir):
    """The larger example of the guide: the built-in family under another name, with its own template and parts."""
    file = plugin("""
    from omniprep.registry import *

    register_model_arch(
        MultiModelKeys(
            'my_qwen2_5_omni',
            language_model=['thinker.model', 'thinker.lm_head'],
            vision_tower=['thinker.audio_tower', 'thinker.visual'],
            aligner='thinker.visual.merger',
            generator=['talker', 'token2wav']))
    register_template(
        TemplateMeta(
            'my_qwen2_5_omni',
            prefix=[],
            prompt=['<|im_start|>user\\n{{QUERY}}<|im_end|>\\n<|im_start|>assistant\\n'],
            chat_sep=['<|im_end|>\\n'],
            suffix=['<|im_end|>'],
            system_prefix=['<|im_start|>system\\n{{SYSTEM}}<|im_end|>\\n'],
            default_system='Be short.',
            stop_words=['<|endoftext|>'],
            agent_template='hermes'))
    register_model(
        ModelMeta(
            'my_qwen2_5_omni',
            [ModelGroup([Model('Qwen/Qwen2.5-Omni-3B'), Model('Qwen/Qwen2.5-Omni-7B', 'Qwen/Qwen2.5-Omni-7B')])],
            'my_qwen2_5_omni',
            get_model_tokenizer_multimodal,
            is_multimodal=True,
            model_arch='my_qwen2_5_omni',
            architectures=['Qwen2_5OmniModel', 'Qwen2_5OmniForConditionalGeneration'],
            requires=['transformers>=4.50'],
            tags=['vision', 'video', 'audio'],
            additional_saved_files=['spk_dict.pt']))
    """)
    ours = resolve_family(str(model_dir))
    mine = resolve_family(str(model_dir), plugins=(str(file),))
    assert mine.name == "my_qwen2_5_omni" and mine.modalities == ours.modalities and mine.mrope
    assert mine.record.checkpoints == ("Qwen/Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-7B")
    assert mine.template.default_system == "Be short."
    for name in ("prefix", "prompt", "chat_sep", "suffix", "system_prefix", "agent_template"):
        assert getattr(mine.template, name) == getattr(ours.template, name), name
    assert mine.saved_files == ("spk_dict.pt",)
    assert mine.arch.aligner == ("thinker.visual.merger",) and mine.cls.load_model == ours.cls.load_model
    load_families((str(toy.FAMILY),))  # the next command's plug-ins replace these
    assert resolve_family(str(model_dir)).name == "qwen2_5_omni"


def test_register_model_above_a_class(checkpoint):
    load_families((str(toy.FAMILY),))
    base = REGISTRY.families["toy_vl"].cls
    registry = Registry()
    registry.families.update(REGISTRY.families)
    registry.register_template(TemplateMeta("mine", prefix=["<|endoftext|>"], prompt=["{{QUERY}}:"], chat_sep=None))
    registry.register_model_arch(MultiModelKeys("mine", vision_tower="visual"))
    loads = []

    def get_function(model_dir, model_info, model_kwargs, load_model=True, **kwargs):
        loads.append((model_dir, model_info.torch_dtype, kwargs["attn_impl"], load_model))
        return "the model", "the processor"

    @registry.register_model(
        ModelMeta(
            "mine", ModelGroup([Model(hf_model_id="a/b")], requires=["numpy"]), "mine", get_function, "mine", ["Mine"],
            is_multimodal=True,
        )
    )  # fmt: skip
    class Mine(base):
        pass

    record = registry.families["mine"]
    assert record.cls is Mine and record.hf_architectures == ("Mine",) and record.requires == ("numpy",)
    ctx = record.cls(record, FamilySpec(model=str(checkpoint)), {"architectures": ["Mine"]})
    assert ctx.arch == MultiModelKeys(arch_name="mine", vision_tower=("visual",)) and ctx.modalities == ("image",)
    assert ctx.template.suffix == ("<|im_end|>",)  # eos of this checkpoint
    assert ctx.load_model("path", "bfloat16", "sdpa") == "the model"
    assert loads == [("path", "bfloat16", "sdpa", True)]
    with pytest.raises(errors.DuplicateFamilyError, match="family 'mine' is registered already"):
        registry.register_model(ModelMeta("mine", []))
    registry.register_model(ModelMeta("mine", [], architectures=["Mine"]), exist_ok=True)
    assert registry.families["mine"].cls is not Mine


def test_defaults_are_those_of_each_guide():
    theirs, ours = TemplateMeta("x", [], ["{{QUERY}}"], ["\n"]), TemplateMeta()
    assert (theirs.agent_template, ours.agent_template) == ("react_en", "hermes")
    assert theirs.system_prefix == () and ours.system_prefix[0].startswith("<|im_start|>system")
    resolved = theirs.of_checkpoint({"eos_token_id": "</s>"}.__getitem__)
    assert resolved.suffix == ("</s>",) and resolved.stop_words == ("</s>",)
    assert TemplateMeta(prompt=["a"], suffix=[[7]]).of_checkpoint({"7": "seven"}.__getitem__).suffix == ("seven",)
    registry = Registry()
    registry.register_template(theirs)
    registry.register_template(TemplateMeta("x", [], ["{{QUERY}}!"], ["\n"]), exist_ok=True)
    assert registry.named("template", "x").prompt == ("{{QUERY}}!",)
    assert ModelArch(language_model="model").language_model == ("model",)


def test_more_files_go_into_a_trained_checkpoint(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for name in ("config.json", "voice.bin", "other.bin"):
        (source / name).write_text("{}")
    complete(out, source, (), torch.float32, ("voice*",))
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "voice.bin"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TemplateMeta("x", [], ["{{QUERY}}"]), "'x': chat_sep is missing"),
        (lambda: TemplateMeta("x", "a", ["{{QUERY}}"], None), r"prefix must be a list of texts, not 'a'"),
        (lambda: TemplateMeta("x", [], ["{{SYSTEM}}{{QUERY}}"], None), "in prompt is not supported.*register_renderer"),
        (lambda: TemplateMeta("x", [], ["q"], None, default_system="s"), "no text has a place"),
        (lambda: TemplateMeta("x", [], ["q"], None, template_cls=dict), "template_cls has no meaning here.*guides.md"),
        (lambda: TemplateMeta("x", [], ["q"], None, response_prefix="<think>"), "response_prefix.*register_renderer"),
        (lambda: TemplateMeta("x", [], ["q"], None, auto_add_bos=True), 'auto_add_bos.*"bos_token_id"'),
        (lambda: TemplateMeta("x", [], ["q", {}], None), "neither a text nor a list of tokens"),
        (lambda: ModelMeta("m", [], is_reward=True), "is_reward cannot be set"),
        (lambda: ModelMeta("m", [], torch_dtype="float16"), "torch_dtype cannot be set"),
        (lambda: ModelMeta("m", [], task_type="seq_cls"), "task_type 'seq_cls' is not known"),
        (lambda: ModelMeta("m", [], architectures="A"), r"must be a list: \['A'\]"),
        (lambda: REGISTRY.register_max_image_tokens(), "must be an integer of at least 1, not None"),
        (lambda: get_model_tokenizer_with_flash_attn("m"), "cannot be called"),
        (lambda: REGISTRY.register_model(ModelMeta("m", [], "nobodys")), "template 'nobodys' is not registered"),
        (lambda: REGISTRY.register_model(ModelMeta("m", [], model_arch="no")), "arch 'no' is not registered"),
    ],
)
def test_what_has_no_meaning_here_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_template_beside_unknown_media_is_refused(checkpoint, plugin):
    file = plugin(SWIFT.replace("ignore_patterns=['nemo']", "is_multimodal=True, architectures=['Unheard']"))
    with pytest.raises(errors.RegistrationError, match="give template=None.*or write register_model above a class"):
        resolve_family(str(checkpoint), "custom", (str(file),))


def test_a_token_that_the_checkpoint_lacks(checkpoint, plugin):
    file = plugin(SWIFT.replace("chat_sep=['\\n']", "chat_sep=['\\n'], suffix=[['bos_token_id']]"))
    with pytest.raises(errors.UnknownTokenError, match=r"\['bos_token_id'\], which the tokenizer of .* lacks"):
        resolve_family(str(checkpoint), "custom", (str(file),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("import REGISTRY,", "import Template, REGISTRY,"), "omniprep.registry has no Template: what an item becomes"),
        (("import REGISTRY,", "import InputContext, REGISTRY,"), "no InputContext: functions get the family"),
        (("class ToyVL(", "import torch\nclass ToyVL(torch.nn.Module, "), None),
        (('@REGISTRY.register_family("toy_vl", hf_architectures=["ToyVL"], version="1")\n', ""), "not registered"),
    ],
)
def test_a_plug_in_that_keeps_what_is_not_ours(plugin, change, message):
    text = toy.FAMILY.read_text().replace("ToyVL", "Other").replace("toy_vl", "other")
    before, after = (part.replace("ToyVL", "Other").replace("toy_vl", "other") for part in change)
    assert before in text
    if message is None:  # a decorator stands before the class
        text = "import torch\n" + text.replace("(SupportsMultiModal)", "(torch.nn.Module, SupportsMultiModal)")
        message = "Other is a model .nn.Module., a family is not"
    else:
        text = text.replace(before, after)
    with pytest.raises(errors.FamilyError, match=message):
        load_families((str(plugin(text)),))


def test_every_decorator_and_attribute_is_on_the_page():
    """docs/families.md, "What is registered"."""
    page = (toy.ROOT / "docs" / "families.md").read_text().split("## What is registered")[1]
    decorators = [name for name in vars(Registry) if name.startswith("register_")]
    assert len(decorators) > 15
    assert [name for name in decorators if f"`{name}" not in page] == []
    attributes = {*Family.__annotations__, *Rowwise.__annotations__} - {"name", "template", "renderer"}
    assert len(attributes) > 15
    assert [name for name in sorted(attributes) if f"`{name}`" not in page] == []


def test_the_base_class_has_the_guides_name():
    assert SupportsMultiModal.__name__ == "Family"
