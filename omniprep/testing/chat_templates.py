"""Chat templates in the forms of the checkpoints of several families, with the tokens in them."""

# Plain ChatML; MEDIA stands for the tags of media items, which are the processor's own tokens.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for item in message['content'] %}MEDIA"
    "{% if item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CHATML_ENDS = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

# Qwen3.5: images between marks; a system prompt only where the row has one; thoughts of earlier turns are dropped.
QWEN3_5 = (
    "{%- macro content_of(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}"
    "{%- for item in content -%}{%- if item.type == 'image' or 'image' in item -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif item.type == 'video' or 'video' in item -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in item -%}{{- item.text -}}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{%- if tools -%}{{- '<|im_start|>system\n# Tools\n\nYou have access to the following functions:\n\n<tools>' -}}"
    "{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}{{- '\n</tools>' -}}"
    "{%- if messages[0].role == 'system' -%}{{- '\n\n' + content_of(messages[0].content) | trim -}}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- elif messages[0].role == 'system' -%}"
    "{{- '<|im_start|>system\n' + content_of(messages[0].content) | trim + '<|im_end|>\n' -}}{%- endif -%}"
    "{%- set last = namespace(user=-1) -%}"
    "{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- for message in messages -%}{%- set content = content_of(message.content) | trim -%}"
    "{%- if message.role == 'user' -%}{{- '<|im_start|>user\n' + content + '<|im_end|>\n' -}}"
    "{%- elif message.role == 'assistant' -%}{%- set thought = namespace(text='') -%}"
    "{%- if message.reasoning_content is string -%}{%- set thought.text = message.reasoning_content -%}"
    "{%- elif '</think>' in content -%}"
    "{%- set thought.text = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{%- if loop.index0 > last.user -%}"
    "{{- '<|im_start|>assistant\n<think>\n' + thought.text | trim + '\n</think>\n\n' + content -}}"
    "{%- else -%}{{- '<|im_start|>assistant\n' + content -}}{%- endif -%}{{- '<|im_end|>\n' -}}"
    "{%- elif message.role == 'tool' -%}"
    "{{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' -}}"
    "{%- elif not loop.first -%}{{- raise_exception('System message must be at the beginning.') -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}"
    "{%- else -%}{{- '<think>\n' -}}{%- endif -%}{%- endif -%}"
)
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

# Qwen2-VL and those that took its template: media between marks, wherever the chat has them.
QWEN_VISION = CHATML.replace(
    "MEDIA",
    "{% if item['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% if item['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% endif %}",
)

# GLM-4.1V, GLM-4.5V and GLM-4.6V: roles are tokens, answers are not closed by one.
GLM = (
    "[gMASK]<sop>\n{%- for message in messages -%}{%- if message.role == 'user' -%}<|user|>\n"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}{%- for item in message.content -%}"
    "{%- if item.type == 'image' -%}<|begin_of_image|><|image|><|end_of_image|>"
    "{%- elif item.type == 'video' -%}<|begin_of_video|><|video|><|end_of_video|>"
    "{%- elif item.type == 'text' -%}{{ item.text }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- elif message.role == 'assistant' -%}<|assistant|>\n"
    "{%- if message.content is string -%}{{ message.content | trim }}{%- else -%}"
    "{%- for item in message.content -%}{%- if item.type == 'text' -%}{{ item.text | trim }}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}"
    "{%- elif message.role == 'system' -%}<|system|>\n"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}{%- for item in message.content -%}"
    "{%- if item.type == 'text' -%}{{ item.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>\n{%- endif -%}"
)
GLM_TOKENS = (
    *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"),
)
GLM_ENDS = {"bos_token": "[gMASK]", "eos_token": "<|user|>", "pad_token": "<|endoftext|>"}
GLM_NAMES = {
    "image_token": "<|image|>",
    "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>",
    "video_token": "<|video|>",
    "video_start_token": "<|begin_of_video|>",
    "video_end_token": "<|end_of_video|>",
}

# LLaVA-OneVision: media of a turn before its text; answers marked for masks.
LLAVA_ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + item['text'] }}{% endfor %}"
    "{% else %}{% for item in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + item['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# InternVL3: an image is a token and a newline.
INTERNVL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for item in message['content'] %}{% if item['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif item['type'] == 'video' %}{{ '<video>\n' }}{% elif item['type'] == 'text' %}"
    "{{ item['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Gemma 3: the system prompt stands inside the first question; texts are trimmed; turns must alternate.
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}"
    "{%- set first = messages[0]['content'] + '\n\n' -%}{%- else -%}"
    "{%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for message in turns -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}"
    "{%- else -%}{{ raise_exception('Invalid content type') }}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
GEMMA_ENDS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}

# SmolVLM2 and Idefics3: roles are words; a turn that begins with an image has no space after its colon.
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}"
    "{% elif item['type'] == 'image' %}{{ '<image>' }}{% elif item['type'] == 'video' %}{{ '<video>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM_ENDS = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}

# Gemma 4: turns between tokens of their own, with a system turn.
GEMMA4 = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<|turn>' + role + '\n' }}{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}"
    "{%- elif item['type'] == 'image' -%}{{ '\n\n<|image|>\n\n' }}{%- elif item['type'] == 'video' -%}"
    "{{ '\n\n<|video|>\n\n' }}{%- elif item['type'] == 'audio' -%}{{ '<|audio|>' }}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{{ '<turn|>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|turn>model\n' }}{%- endif -%}"
)
