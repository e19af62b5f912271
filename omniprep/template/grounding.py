"""Grounding: converts boxes to the model's units, and writes boxes and references as text.

Source: ms-swift 3.9.3 base.py normalize_bbox; template/qwen.py replace_ref, replace_bbox (legacy and new format).
"""

from typing import Any

from omniprep.errors import Reject, RejectCode

Size = tuple[int, int]


def normalize_boxes(objects: dict[str, Any], original: list[Size], resized: list[Size], norm: str) -> list[list[Any]]:
    """Convert boxes to the units that the model is trained on.

    Args:
        objects: ref, bbox, bbox_type ("real" pixels of the original image, or "norm1"), image_id.
        original: (width, height) of each image as loaded.
        resized: (width, height) of each image as the model sees it.
        norm: "norm1000", or "none" for pixels of the resized image.

    Returns:
        A list of 2 or 4 integers for each box, rounded half to even.

    Raises:
        Reject: bad_objects, when a box names an image that is absent or boxes are missing.
    """
    boxes = objects.get("bbox")
    if boxes is None:
        raise Reject(RejectCode.BAD_OBJECTS, "objects has no bbox")
    ids = list(objects.get("image_id") or [])
    ids += [0] * (len(boxes) - len(ids))
    unit = objects.get("bbox_type") == "norm1"
    result = []
    for position, (box, image) in enumerate(zip(boxes, ids, strict=False), 1):
        absolute = unit and norm == "norm1000"  # needs no image size
        if not absolute and (not isinstance(image, int) or not -len(original) <= image < len(original)):
            raise Reject(RejectCode.BAD_OBJECTS, f"box {position} names image {image}, but the row has {len(original)}")
        source = (1, 1) if unit else original[image]
        target = (1000, 1000) if norm == "norm1000" else resized[image]
        try:
            result.append([round(value / source[i % 2] * target[i % 2]) for i, value in enumerate(box)])
        except OverflowError as error:  # a finite coordinate that is infinite in the new unit
            raise Reject(RejectCode.BAD_OBJECTS, f"box {position} is beyond what a number can hold") from error
    return result


def write_reference(name: str, box_format: str, tokens: tuple[str, str]) -> str:
    """The text of a `<ref-object>`: in the legacy format between two tokens, else plain."""
    return name.join(tokens) if box_format == "legacy" else name


def write_box(box: list[Any], box_format: str, tokens: tuple[str, str]) -> str:
    """The text of a `<bbox>`: in the legacy format as points between two tokens, else as a list."""
    if box_format != "legacy":
        return str(box)
    return ",".join(f"({x},{y})" for x, y in zip(box[::2], box[1::2], strict=True)).join(tokens)
