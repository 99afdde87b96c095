"""The linear segmentation head: its score is the formula's, it learns what is linear, and chance is chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avfast.evaluate.segmentation import confusion, linear_segmentation, mean_iou


def by_hand(predicted, truth, classes):
    values = []
    for c in range(classes):
        union = np.logical_or(predicted == c, truth == c).sum()
        if union:
            values.append(np.logical_and(predicted == c, truth == c).sum() / union)
    return float(np.mean(values))


def test_mean_iou_is_the_set_formula():
    rng = np.random.default_rng(0)
    for classes in (2, 5, 11):
        predicted, truth = rng.integers(0, classes, (2, 3, 17, 9))
        counts = confusion(torch.from_numpy(predicted), torch.from_numpy(truth), classes)
        assert mean_iou(counts) == pytest.approx(by_hand(predicted, truth, classes), abs=1e-12)


def test_mean_iou_agrees_with_torchmetrics():
    segmentation = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is not installed")
    predicted, truth = torch.randint(0, 4, (2, 2, 30, 30))
    theirs = segmentation.multiclass_jaccard_index(predicted, truth, num_classes=4, average="macro")
    assert mean_iou(confusion(predicted, truth, 4)) == pytest.approx(theirs.item(), abs=1e-6)


def test_ignored_pixels_count_nowhere():
    truth = torch.tensor([[0, 1, 255]])
    assert confusion(torch.tensor([[0, 0, 1]]), truth, 2).tolist() == [[1, 0], [1, 0]]
    maps, masks = blobs(30, 0)
    masks[:, :4] = 255
    scores = linear_segmentation((maps, masks), blobs(8, 1), (maps, masks), classes=3)
    assert scores["mIoU"].value > 0.7


def blobs(n, seed, informative=True):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 3, (n, 4, 4), generator=generator)
    masks = cells.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    shown = cells if informative else torch.randint(0, 3, (n, 4, 4), generator=generator)
    maps = F.one_hot(shown, 3).permute(0, 3, 1, 2).float() @ torch.eye(4)
    return torch.cat([maps, torch.randn(n, 5, 4, 4, generator=generator)], 1), masks


def test_features_that_know_the_classes_score_and_others_do_not():
    good = linear_segmentation(blobs(60, 0), blobs(15, 1), blobs(30, 2), classes=3)
    bad = linear_segmentation(blobs(60, 0, False), blobs(15, 1, False), blobs(30, 2, False), classes=3)
    assert good["mIoU"].value > 0.7 > 0.4 > bad["mIoU"].value
    assert good["mIoU"].interval[0] <= good["mIoU"].value <= good["mIoU"].interval[1]
    assert 0 < good["mIoU"].chance < 0.25 and good["pixel accuracy"].value > 0.8
    assert good["mIoU"].n == 30 and "segmentation/2" in good["mIoU"].protocol


def test_it_is_deterministic_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    a = linear_segmentation(blobs(20, 0), blobs(5, 1), blobs(10, 2), classes=3)
    b = linear_segmentation(blobs(20, 0), blobs(5, 1), blobs(10, 2), classes=3)
    assert a == b
    assert torch.equal(state, torch.get_rng_state())


def test_empty_splits_and_wrong_shapes():
    empty = (torch.zeros(0, 8, 4, 4), torch.zeros(0, 32, 32, dtype=torch.uint8))
    assert linear_segmentation(empty, blobs(5, 1), blobs(5, 2), classes=3)["mIoU"].value is None
    with pytest.raises(ValueError, match="train: expected maps"):
        linear_segmentation((torch.zeros(2, 3), empty[1]), blobs(5, 1), blobs(5, 2), classes=3)
    with pytest.raises(ValueError, match="expected class numbers below 2"):
        linear_segmentation(blobs(5, 0), blobs(5, 1), blobs(5, 2), classes=2)
