"""From a picture to people with keypoints: detect, crop, run the network, decode.

Symbols: N people or crops, K keypoints, S the crop's side. Points are image px.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hgpose import heatmaps
from hgpose.detect import Detector, PersonDetector, WholeFrame, choose, read_boxes
from hgpose.device import choose_device
from hgpose.geometry import CropTransform, heatmap_to_crop
from hgpose.keypoints import keypoint_set
from hgpose.network import Network, warp
from hgpose.options import EstimatorOptions
from hgpose.types import Detections, Frame, Heatmaps, ModelInfo, Poses
from hgpose.weights import DEFAULT_FINDER, load_weights

#: Share of a person's longer side by which a box exceeds the person's keypoints (heads have hair,
#: ankles have feet); that of the annotated boxes the network was trained with.
_BOX_MARGIN = 0.1
#: Keypoints that score at least this say where a person is.
_SURE = 0.2

#: A pose of this score leaves it to the finder's threshold whether a box shows a person; it counts as this
#: power of its score. Both were chosen on the finder's validation set.
_NEUTRAL_SCORE, _POSE_SHARE = 0.21, 0.2


class CropEstimator:
    """Finds the keypoints of the person in each crop.

    Args:
        network: with a card for the task ``pose``.
        flip_test: also run every crop mirrored and average the heatmaps.
        batch: crops that go through the network at once, at most.
    """

    def __init__(self, network: Network, flip_test: bool = False, batch: int = 16) -> None:
        self.network, self.card = network, network.card
        self.keypoint_set = keypoint_set(self.card.keypoint_set)
        self.flip_test, self.batch = flip_test, batch

    def transform(self, box_xyxy: NDArray[np.floating]) -> CropTransform:
        """The crop that belongs to a box ``(4,)`` image px."""
        return CropTransform.from_box(
            box_xyxy, self.card.input_px, self.card.box_padding, self.card.center_shift
        )

    def __call__(
        self,
        images: Sequence[NDArray[np.uint8]],
        transforms: Sequence[CropTransform],
        keep_heatmaps: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """Keypoints of N crops, whichever images they lie on.

        Args:
            images: N images ``(H, W, 3)`` uint8 RGB; the same one may stand there often.
            transforms: N crops, one for each.
            keep_heatmaps: also return the heatmaps.

        Returns:
            points ``(N, K, 2)`` float32 image px, scores ``(N, K)`` float32 in [0, 1], and
            heatmaps ``(N, K, S/4, S/4)`` float32 in [0, 1] if asked for.
        """
        k = len(self.keypoint_set)
        parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for start in range(0, len(images), self.batch):
            chunk = slice(start, start + self.batch)
            maps = self._heatmaps(warp(images[chunk], transforms[chunk], self.network.device))
            parts.append((*self._decode(maps), maps.clamp(0, 1) if keep_heatmaps else None))
        if not parts:
            return np.zeros((0, k, 2), np.float32), np.zeros((0, k), np.float32), None
        # One copy back, and the only wait for the device.
        found = torch.cat([torch.cat([p[0], p[1][..., None]], dim=-1) for p in parts]).cpu().numpy()
        cells, scores = found[..., :2], np.ascontiguousarray(found[..., 2])
        points = np.stack([t.to_image(p) for t, p in zip(transforms, heatmap_to_crop(cells), strict=True)])
        kept = torch.cat([p[2] for p in parts if p[2] is not None]).cpu().numpy() if keep_heatmaps else None
        return points.astype(np.float32), scores, kept

    def _heatmaps(self, crops: Tensor) -> Tensor:
        if not self.flip_test:
            return self._read(self.network(crops)[-1])
        both = self._read(self.network(torch.cat([crops, crops.flip(-1)]))[-1])
        straight, mirrored = both.chunk(2)
        order, shift = self.keypoint_set.flip_order, self.card.shift_heatmap
        return (straight + heatmaps.flip(mirrored, order, shift)) / 2

    def _read(self, maps: Tensor) -> Tensor:
        return heatmaps.probabilities(maps) if self.card.decoding == "softmax" else maps.float()

    def _decode(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        card = self.card
        if card.decoding == "peak":
            return heatmaps.decode_peak(maps, card.refine_from, card.offset_cells, card.empty_cell)
        if card.decoding == "princeton":
            return heatmaps.decode_princeton(maps)
        return heatmaps.decode(maps, self.keypoint_set.flip_order)


def keypoint_box(
    points: NDArray[np.float32], scores: NDArray[np.float32], box: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Where a person is after its keypoints were found: ``(4,)`` xyxy image px.

    Args:
        points, scores: ``(K, 2)`` and ``(K,)``.
        box: ``(4,)`` where the person was looked for; stays where too few keypoints are sure.
    """
    sure = points[scores >= _SURE]
    if len(sure) < 4:
        return box
    low, high = sure.min(0), sure.max(0)
    margin = _BOX_MARGIN * (high - low).max()
    return np.concatenate([low - margin, high + margin]).astype(np.float32)


class Estimator:
    """Finds people and their keypoints: ``poses = estimator(image)``.

    Made by :func:`hgpose.load_estimator`.
    """

    def __init__(self, detector: Detector, crops: CropEstimator, options: EstimatorOptions) -> None:
        self.detector, self.crops, self.options = detector, crops, options
        self.keypoint_set = crops.keypoint_set
        self.model = ModelInfo(crops.card.name, crops.card.sha256)
        self.device = crops.network.device

    def __call__(self, image: NDArray[np.uint8]) -> Poses:
        """The people of one image ``(H, W, 3)`` uint8 RGB."""
        return self.frames([Frame(np.ascontiguousarray(image), 0, 0.0)])[0]

    def frames(self, frames: Sequence[Frame]) -> list[Poses]:
        """The people of each frame who are asked for, found anew on every one.

        All crops go through the network together.
        """
        return self.choose(frames, self.poses(frames, self.detector(frames)))

    def choose(self, frames: Sequence[Frame], people: Sequence[Poses]) -> list[Poses]:
        """Of each frame's people, who have no ids yet, those who are people and are asked for."""
        chosen = []
        for frame, poses in zip(frames, people, strict=True):
            poses = poses[np.flatnonzero(self.is_person(poses))]
            height, width = frame.image.shape[:2]
            options = self.options
            rows = choose(poses.boxes, poses.ids, (width, height), options.person, options.max_people)
            chosen.append(poses[rows])
        return chosen

    def is_person(self, poses: Poses) -> NDArray[np.bool_]:
        """Which of the boxes that the detector found show a person, by its score and the pose's.

        The pose network looks closer than the finder: where it sees keypoints a faint box is one, too.
        """
        sure = poses.box_scores * (poses.person_scores / _NEUTRAL_SCORE) ** _POSE_SHARE
        return np.asarray(sure >= self.detector.threshold)

    def poses(self, frames: Sequence[Frame], people: Sequence[Detections]) -> list[Poses]:
        """The keypoints of people whose boxes are known.

        Args:
            frames: some frames.
            people: for each frame its people.

        Returns:
            For each frame its poses. People in whose box the network sees nobody are left out,
            unless the boxes are the user's own.
        """
        images = [f.image for f, p in zip(frames, people, strict=True) for _ in range(len(p))]
        transforms = [self.crops.transform(box) for p in people for box in p.boxes]
        points, scores, maps = self.crops(images, transforms, self.options.heatmaps)
        found, start = [], 0
        for p in people:
            rows = slice(start, start + len(p))
            start += len(p)
            poses = Poses(
                points[rows],
                scores[rows],
                p.boxes,
                p.scores,
                np.full(len(p), -1, np.int64),
                self.keypoint_set,
                None if maps is None else Heatmaps(maps[rows], tuple(transforms[rows])),
            )
            if self.detector.proposes:
                poses = poses[np.flatnonzero(poses.person_scores >= self.options.min_person_score)]
            found.append(poses)
        return found


def load_estimator(options: EstimatorOptions | None = None) -> Estimator:
    """Loads detector and pose network, ready to be called with images.

    Args:
        options: what to load and how to run it; by default the shipped weights on the best device.

    Each process must load its own: PyTorch does not outlive a fork, so begin processes with ``spawn``.

    Raises:
        WeightsError: weights are missing, damaged or not for the task.
        OptionsError: the device or backend cannot be used here.
        InputError: a file of boxes cannot be read.
    """
    options = options or EstimatorOptions()
    device = choose_device(options.device)
    model, card = load_weights(options.weights, "pose")
    network = Network(model, card, device, options.half, options.backend)
    crops = CropEstimator(network, options.flip_test, options.batch)
    detector: Detector
    if options.detector == "person":
        finder, finder_card = load_weights(DEFAULT_FINDER, "person")
        detector = PersonDetector(Network(finder, finder_card, device, options.half, options.backend))
    elif options.detector == "whole-frame":
        detector = WholeFrame()
    else:
        detector = read_boxes(options.boxes_file)
    return Estimator(detector, crops, options)
