"""The processor's side of benchmarks/build.py: transformers' own processor, row by row, as its model card shows.

Reads the path of a rows' file from each line of standard input and answers with a line of JSON: CPU seconds and tokens.
No labels, no packing and no writing are counted, for it does none; nor is reading the rows.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch  # noqa: E402
from qwen_omni_utils import process_mm_info  # noqa: E402
from transformers import AutoProcessor  # noqa: E402

torch.set_num_threads(1)
processor = AutoProcessor.from_pretrained(sys.argv[1])
KINDS = ("image", "audio", "video")


def conversation(row: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """A row with one medium at the start of its first message, or none, with typed contents."""
    messages = []
    for message in row["messages"]:
        content = [{"type": "text", "text": message["content"]}]
        for kind in KINDS:
            if message["content"].startswith(f"<{kind}>"):
                content[0]["text"] = message["content"].removeprefix(f"<{kind}>")
                content.insert(0, {"type": kind, kind: str(folder / row[f"{kind}s"][0])})
        messages.append({"role": message["role"], "content": content})
    return messages


print(json.dumps({"ready": True}), file=answers, flush=True)
for line in sys.stdin:
    path = Path(line.strip())
    chats = [conversation(json.loads(text), path.parent) for text in path.read_text().splitlines()]
    tokens = 0
    begin = time.process_time()
    for chat in chats:
        text = processor.apply_chat_template(chat, tokenize=False)
        audios, images, videos = process_mm_info(chat, use_audio_in_video=False)
        out = processor(text=text, audio=audios, images=images, videos=videos, return_tensors="pt")
        tokens += out["input_ids"].shape[1]
    print(json.dumps({"seconds": time.process_time() - begin, "tokens": tokens, "rows": len(chats)}), file=answers)
    answers.flush()
