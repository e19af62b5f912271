"""ms-swift's side of benchmarks/build.py; runs in an environment of its own that has ms-swift 3.9.x.

Reads the path of a rows' file from each line of standard input, encodes its rows with the qwen2_5_omni template on one
thread, and answers with a line of JSON: CPU seconds and tokens. Reading the rows is not counted.
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch  # noqa: E402
from swift.llm import get_model_tokenizer, get_template  # noqa: E402

torch.set_num_threads(1)
_, processor = get_model_tokenizer(sys.argv[1], model_type="qwen2_5_omni", load_model=False)
template = get_template("qwen2_5_omni", processor, max_length=1 << 17, truncation_strategy="raise")
template.set_mode("train")
template.packing = template.padding_free = True
print(json.dumps({"ready": True}), file=answers, flush=True)

for line in sys.stdin:
    path = line.strip()
    os.chdir(os.path.dirname(path))
    with open(path) as file:
        rows = [json.loads(text) for text in file]
    tokens = volume = 0
    begin = time.process_time()
    for row in rows:
        out = template.encode(row, return_length=True)
        tokens += out["length"]
        volume += sum(v.numel() for k, v in out.items() if isinstance(v, torch.Tensor))
    seconds = time.process_time() - begin
    print(
        json.dumps({"seconds": seconds, "tokens": tokens, "rows": len(rows), "values": volume}),
        file=answers,
        flush=True,
    )
