"""Chat templates in the styles of well-known models, and a small checkpoint whose processor takes images with them.

Templates are written here; each has the habits of its model: what it trims, merges, refuses and adds.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<img>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<img>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != ((loop.index0 - (1 if messages[0]['role'] == 'system' else 0)) % 2 == 0) "
    "and m['role'] != 'system' %}{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{{ '<|start|>' + m['role'] + '<|end|>\n\n' }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<img>{% elif c['type'] == 'text' %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = (messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text'])"
    " + '\n\n' %}{% set loop_messages = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for m in loop_messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}"
    "{% endif %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<img>' }}{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] | sort(attribute='type') %}"
    "{% if c['type'] == 'image' %}<img>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
SMOLVLM = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% elif c['type'] == 'image' %}<img>"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for m in messages %}"
    "{% if m['role'] == 'user' %}<|user|>\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<img>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% elif m['role'] == 'system' %}<|system|>\n{{ m['content'][0]['text'] }}"
    "{% else %}<|assistant|>\n{% set t = m['content'][0]['text'] %}"
    "{% if m.reasoning_content is string %}{{ '<think>' + m.reasoning_content.strip() + '</think>' }}"
    "{% elif '</think>' in t %}"
    "{% if loop.last %}{{ '<think>' + t.split('</think>')[0].split('<think>')[-1].strip() + '</think>' }}"
    "{% else %}<think></think>{% endif %}{% set t = t.split('</think>')[-1] %}"
    "{% endif %}{% if t.strip() %}{{ '\n' + t.strip() }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' }}"
    "{% for c in m['content'] %}{{ '<img>\n' if c['type'] == 'image' else c['text'] }}{% endfor %}"
    "{% elif m['role'] == 'assistant' %}{% set t = m['content'] %}"
    "{% if '</think>' in t %}{% set t = t.split('</think>')[-1] %}{% endif %}"
    "{{ '<|Assistant|>' + t + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
HERMES = (
    "{% if tools %}{{ '<|im_start|>system\n# Tools\n' }}{% for t in tools %}{{ t | tojson }}{{ '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% elif m.content %}{{ m.content[0].text }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
    """{{ '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}{{ c.function.arguments | tojson }}"""
    "{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% for c in m.content %}{{ '<img>' if c.type == 'image' else c.text }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "generation": GENERATION, "llama": LLAMA, "gemma": GEMMA, "mistral": MISTRAL,
    "smolvlm": SMOLVLM, "glm": GLM, "deepseek": DEEPSEEK, "hermes": HERMES,
}  # fmt: skip
SPECIAL = (
    "<unk>", "<s>", "</s>", "<img>", "<row>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<end_of_utterance>", "[gMASK]", "<sop>", "<|user|>",
    "<|assistant|>", "<|system|>", "<|User|>", "<|Assistant|>", "<think>", "</think>",
)  # fmt: skip
CORPUS = [
    "What is this? A cat and a dog on a wall.\n\nThe quick brown fox jumps over the lazy dog, and so on.",
    "user assistant system model: hello there, how are you today? I am fine\n\n\n 1 2 3 4 5 (yes) [no] {maybe}",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}',
] * 4


def write_tokenizer(folder: Path, kind: str = "bytes") -> None:
    """A trained tokenizer: of bytes (Llama 3, offsets trimmed), or of words with ▁ (sentencepiece, as Llama 2)."""
    if kind in ("bytes", "newlines"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(CORPUS, trainer)
        trim: list[Any] = [processors.ByteLevel(trim_offsets=True)]
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        if kind == "metaspace":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            tokenizer.normalizer = normalizers.Sequence(steps)
        letters = sorted({letter for text in CORPUS for letter in text} | {"▁"})
        trainer = trainers.BpeTrainer(
            vocab_size=900,
            initial_alphabet=letters,
            special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(steps)
        trim = []
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if kind == "newlines":  # Gemma: added tokens of several newlines, which are not special
        tokenizer.add_tokens([AddedToken("\n" * n, special=False, normalized=False) for n in range(2, 6)])
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    tokenizer.post_processor = processors.Sequence([*trim, bos])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"pad_token": "<unk>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_checkpoint(folder: Path, template: str, kind: str = "bytes") -> Path:
    """config.json, a tokenizer and a chat template."""
    write_tokenizer(folder, kind)
    (folder / "chat_template.jinja").write_text(template)
    (folder / "config.json").write_text(json.dumps({"architectures": ["JinjaChat"]}))
    return folder


def item_text(width: int, height: int) -> str:
    """An image as its tiles are written: a sentence, rows of tokens, text between them."""
    rows = "\n\n".join("<img>" * max(width // 32, 1) + "<row>" for _ in range(max(height // 32, 1)))
    return f"\n\n a picture:{rows}\n\n"


def processor_of(folder: Path) -> Any:
    """A processor of transformers' own base class that writes images as `item_text`."""
    from transformers import AutoTokenizer
    from transformers.feature_extraction_utils import BatchFeature
    from transformers.processing_utils import ProcessorMixin

    class ImagesAsText(ProcessorMixin):
        attributes = ("tokenizer",)
        tokenizer_class = "AutoTokenizer"
        image_token = "<img>"

        def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
            replacements = [item_text(*image.size) for row in images or [] for image in row]
            filled, offsets = self.get_text_with_replacements([text], images_replacements=replacements)
            wanted = kwargs.pop("return_text_replacement_offsets", False)
            inputs = dict(self.tokenizer(filled, **kwargs))
            return BatchFeature(inputs | ({"text_replacement_offsets": offsets} if wanted else {}))

    processor = ImagesAsText.__new__(ImagesAsText)
    processor.tokenizer = AutoTokenizer.from_pretrained(folder)
    processor.chat_template = (folder / "chat_template.jinja").read_text()
    return processor


def noise_image(width: int, height: int) -> Any:
    """An RGB image of random pixels."""
    from PIL import Image

    return Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), np.uint8))


def register() -> None:
    """The family of these checkpoints."""
    from omniprep.registry import REGISTRY, Field
    from omniprep.template.chat_renderer import render_chat
    from omniprep.template.jinja import ChatTemplate

    if "jinja_chat" in REGISTRY.families:
        return

    @REGISTRY.register_family("jinja_chat", hf_architectures=["JinjaChat"])
    @REGISTRY.register_renderer(render_chat)
    @REGISTRY.register_item_texts(
        lambda ctx, items: {m: [item_text(meta.width, meta.height) for meta in metas] for m, metas in items.items()}
    )
    @REGISTRY.register_input_mapper(
        "image", lambda ctx, items: {"sizes": np.array([item.image.size for item in items], np.int32)}
    )
    @REGISTRY.register_token_counter("image", lambda ctx, meta: max(meta.width // 32, 1) * max(meta.height // 32, 1))
    @REGISTRY.register_max_image_tokens(1 << 20)
    class JinjaChat:
        limits = {"image": None}
        placeholders = {"image": "<img>"}
        fields = {"sizes": Field("image", "item")}

        @property
        def chat(self) -> ChatTemplate:
            if not hasattr(self, "_chat"):
                self._chat = ChatTemplate(processor_of(Path(self.spec.model)), name=self.spec.model)  # type: ignore[attr-defined]
            return self._chat
