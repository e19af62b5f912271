"""The oracle of families whose reference is ms-swift: media as its templates fetch them, then the processor.

ms-swift resizes pictures and frames with qwen_vl_utils before the processor sees them, and tells the processor not to.
So the same is done here, by the functions of the installed qwen_omni_utils (its twin), and what the processor makes of
that must be equal. Source: ms-swift 3.9.3 template/qwen.py, `_encode` of Qwen2VLTemplate and Qwen2_5OmniTemplate.
"""

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from omniprep.compiler.oracle.chats import Chat, file_name
from omniprep.compiler.oracle.processor import Oracle

REFERENCE = "ms-swift 3.9.3"
PATCH = {"qwen3_vl": 16}
"""Model type → patch size that the template asks qwen_vl_utils for; 14 for the others (for Qwen3-Omni too)."""
RESIZED_AGAIN = ("qwen3_omni_moe",)
"""Model types whose template lets the processor resize what was fetched."""


class SwiftOracle(Oracle):
    """A checkpoint's AutoProcessor on media as ms-swift fetches them."""

    @property
    def name(self) -> str:
        """What is compared with, for messages and the manifest."""
        return f"{super().name} on media fetched by qwen_omni_utils, as {REFERENCE} does"

    @property
    def writes_tools(self) -> bool:
        """ms-swift writes tools by templates of its own (tests/test_parity.py holds them)."""
        return False

    def arguments(self, chat: Chat, folder: Path, text: str = "") -> dict[str, Any]:
        """As `Oracle.arguments`."""
        import torch
        from qwen_omni_utils.v2_5.vision_process import fetch_image, fetch_video

        model_type = str(self.config.model_type)
        patch, metadata = PATCH.get(model_type, 14), []

        def medium(modality: str, name: str) -> Any:
            path = str(folder / file_name(modality, name))
            if modality == "image":
                return fetch_image({"image": path}, image_patch_size=patch)
            if modality == "audio":
                return path
            with redirect_stderr(StringIO()):  # it prints which reader it takes
                frames, facts = fetch_video({"video": path}, image_patch_size=patch, return_video_metadata=True)
            metadata.append(facts)
            return frames.to(torch.uint8)  # floats that are whole numbers: transformers 5 would not round them again

        fetched = iter([medium(*item) for item in chat.media])
        kwargs: dict[str, Any] = {}
        if model_type not in RESIZED_AGAIN:
            kwargs = {"images_kwargs": {"do_resize": False}, "videos_kwargs": {"do_resize": False}}
        if metadata:
            kwargs["videos_kwargs"] = {**kwargs.get("videos_kwargs", {}), "do_sample_frames": False}
            if "omni" not in model_type:  # their templates leave the rate at the processor's default
                kwargs["videos_kwargs"]["video_metadata"] = [metadata]
        return self.call(chat, lambda modality, name: next(fetched), kwargs, text)
