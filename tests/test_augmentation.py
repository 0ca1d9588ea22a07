"""Augmentation and self-blending: the same over a clip, repeatable, each what it says."""

import dataclasses

import numpy as np
import pytest
from skimage import data

from effnet_batch.schema import record_id
from effnet_batch.training.augmentation import (
    NO_AUGMENTATION,
    Augmentation,
    augment,
    clip_generator,
)
from effnet_batch.training.self_blending import self_blend

FACE = data.astronaut()[:224, 100:324]
STILL = np.stack([FACE] * 4)
RECORD = record_id("/videos/a.mp4", None, 0)
CHANGES = [field.name for field in dataclasses.fields(Augmentation)]


def only(name: str) -> Augmentation:
    return dataclasses.replace(NO_AUGMENTATION, **{name: 1.0})


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_the_same_in_every_frame(name: str) -> None:
    changed = augment(STILL, only(name), clip_generator(0, 0, RECORD))
    assert changed.shape == STILL.shape
    assert changed.dtype == np.uint8
    assert (changed != STILL).any()
    if name not in ("noise", "h264"):  # these differ from frame to frame by nature
        assert (changed == changed[0]).all()


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_keyed_by_seed_epoch_and_record(name: str) -> None:
    first, again, *others = (
        augment(STILL, only(name), clip_generator(*key))
        for key in [
            (0, 0, RECORD),
            (0, 0, RECORD),
            (1, 0, RECORD),
            (0, 1, RECORD),
            (0, 0, record_id("/videos/b.mp4", None, 0)),
        ]
    )
    assert (first == again).all()
    if name != "flip":  # which has nothing to draw
        assert any((first != other).any() for other in others)


def test_no_augmentation_changes_nothing() -> None:
    assert (augment(STILL, NO_AUGMENTATION, clip_generator(0, 0, RECORD)) == STILL).all()


def test_one_change_more_leaves_the_others_alone() -> None:
    plain = augment(STILL, only("colour"), clip_generator(0, 0, RECORD))
    both = dataclasses.replace(only("colour"), flip=1.0)
    assert (augment(STILL, both, clip_generator(0, 0, RECORD)) == plain[:, :, ::-1]).all()


def test_chances_are_chances() -> None:
    half = dataclasses.replace(NO_AUGMENTATION, flip=0.5)
    flipped = [
        bool((augment(STILL[:1], half, clip_generator(0, epoch, RECORD)) != STILL[:1]).any())
        for epoch in range(200)
    ]
    assert 70 < sum(flipped) < 130


def test_a_chance_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"flip must lie in 0\.\.1, got 1\.5"):
        Augmentation(flip=1.5)


def test_a_self_blended_face_differs_inside_its_mask_alone() -> None:
    found = []
    for seed in range(20):
        fake, mask = self_blend(STILL, np.random.default_rng(seed))
        assert fake.shape == STILL.shape
        assert mask.shape == STILL.shape[1:3]
        assert 0 <= mask.min() <= mask.max() <= 1
        assert mask[0].max() < 0.05  # the edge of the crop belongs to the background
        assert (fake == fake[0]).all()  # a still face stays still
        found.append(np.abs(fake[0].astype(int) - FACE).mean(axis=2))
        # Where the mask is empty there is one picture: the real one, or the changed copy.
        if (found[-1][mask == 0] == 0).all():
            assert found[-1][mask > 0.5 * mask.max()].mean() > 0.5
    assert all(difference.max() > 5 for difference in found)
    assert 5 <= sum((difference[:8] == 0).all() for difference in found) <= 15


def test_self_blending_repeats() -> None:
    first, again = (self_blend(STILL, np.random.default_rng(3))[0] for _ in "ab")
    assert (first == again).all()
