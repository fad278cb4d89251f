"""A short clip of two rendered people with exact truth; ``make_clip`` renders it, nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

#: The clip: H.264, 640x360, 25 frames a second.
CLIP = Path(__file__).with_name("clip.mp4")
#: Its truth: COCO-style JSON with body19 keypoints, image px; image ids are 0-based frame indices.
TRUTH = Path(__file__).with_name("clip.json")

__all__ = ["CLIP", "TRUTH"]
