"""The process that makes a tokenizer for omniprep/families/tokenizer_cache.py.

A tokenizer holds no tensor, and transformers makes one where torch is absent; with torch hidden from it, that takes
half of the time (1.4 s of CPU, 2.8 with torch). What is made so counts only where its class is the one that the
checkpoint names: where that class cannot be imported without torch, transformers takes a more general one in silence.
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict
from typing import Any, cast

from omniprep.child_process import call_in_child
from omniprep.families.checkpoint import checkpoint_file, load_tokenizer
from omniprep.families.tokenizer_cache import SpecialTokens
from omniprep.template.identity import tokenizer_sha256


def write_tokenizer(argument: dict[str, Any]) -> bytes | None:
    """The bytes of a tokenizer's file, facts in the first line; None where its library cannot write it."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # it would say that torch is absent, and judge config.json
    model, hides_torch = argument["model"], argument["hides_torch"]
    if not hides_torch:
        return _content(load_tokenizer(model, trust_remote_code=False))
    cast(dict[str, Any], sys.modules)["torch"] = None  # as Python has a module that cannot be imported
    try:
        tokenizer = load_tokenizer(model, trust_remote_code=False)
    except Exception:  # it may need torch
        tokenizer = None
    named = (checkpoint_file(model, "tokenizer_config.json") or {}).get("tokenizer_class")
    if not isinstance(named, str) or type(tokenizer).__name__.removesuffix("Fast") != named.removesuffix("Fast"):
        return call_in_child(f"{__name__}:write_tokenizer", {**argument, "hides_torch": False})
    return _content(tokenizer)


def _content(tokenizer: Any) -> bytes | None:
    backend = tokenizer.backend_tokenizer
    try:
        text = backend.to_str().encode()
    except Exception:  # tokenizers raises nothing narrower for parts in Python, which it cannot write
        return None
    facts = {
        "content_sha256": hashlib.sha256(text).hexdigest(),
        "special_tokens": asdict(SpecialTokens.of(tokenizer)),
        "tokenizer_sha256": tokenizer_sha256(backend),
    }
    return json.dumps(facts).encode() + b"\n" + text
