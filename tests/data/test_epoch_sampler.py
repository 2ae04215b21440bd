import math

import numpy as np
import pytest

from danet.data.epoch_sampler import EpochSampler
from danet.utils.errors import UserError


def test_sampler_shows_every_image_once_per_epoch():
    sampler = EpochSampler([5, 7], [1.0, 1.0], batch=4, epochs=3, seed=1)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 9
    epochs = [[index for batch in batches[i : i + 3] for _, index in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [batch[0][0] for batch in batches] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert batches == list(EpochSampler([5, 7], [1.0, 1.0], batch=4, epochs=3, seed=1))
    assert batches != list(EpochSampler([5, 7], [1.0, 1.0], batch=4, epochs=3, seed=2))


def test_sampler_weights_are_frequencies():
    sampler = EpochSampler([4, 6, 5], [2.5, 0.5, 0.0], batch=1, epochs=4)
    halves = []
    for epoch in range(4):
        order = sampler.order(epoch)[:, 0]
        images = order % 15
        assert np.bincount(images, minlength=15)[:4].tolist().count(2) == 2  # two of four are shown a third time
        assert np.isin(images, range(4)).sum() == 10
        assert len(set(images[(images >= 4) & (images < 10)])) == 3
        assert not (images >= 10).any()
        assert len(set(order.tolist())) == len(order)  # repetitions differ in their index, so in their augmentation
        halves.append(frozenset(images[(images >= 4) & (images < 10)]))
    assert len(set(halves)) > 1


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [([20, 2], [1.0, 0.25]), ([3, 2, 5, 1], [0.5, 0.1, 0.3, 0.45]), ([100, 7], [0.29, 0.07]), ([1] * 8, [0.25] * 8)],
)
def test_sampler_shows_small_sources_as_often_as_their_weights_say(sizes, weights):
    epochs = 4000
    sampler = EpochSampler(sizes, weights, batch=1, epochs=epochs)
    shares = np.array(sizes) * weights
    # A batch of one image shows all but the last image, if the sum was rounded up.
    counts = np.array([sampler._counts(np.random.default_rng([0, epoch])) for epoch in range(epochs)])
    assert ((counts == np.floor(shares)) | (counts == np.ceil(np.round(shares, 9)))).all()
    np.testing.assert_allclose(counts.mean(axis=0), shares, atol=0.03)
    assert counts.sum(axis=1).min() >= sampler.steps_per_epoch == math.floor(round(shares.sum(), 6))
    source = np.repeat(np.arange(len(sizes)), sizes)
    images = np.concatenate([sampler.order(epoch)[:, 0] % sum(sizes) for epoch in range(epochs)])
    assert set(source[images]) == set(range(len(sizes)))


def test_sampler_with_fractions_resumes_at_any_step():
    options = {"batch": 4, "epochs": 5, "seed": 3}
    whole = list(EpochSampler([9, 2, 3], [1.0, 0.25, 0.5], **options))
    assert len(whole) == 5 * 2
    for step in range(11):
        assert list(EpochSampler([9, 2, 3], [1.0, 0.25, 0.5], **options, start_step=step)) == whole[step:]


@pytest.mark.parametrize("size", [3, 10, 16])
def test_sampler_ranks_share_a_batch_and_resume_at_any_step(size):
    whole = list(EpochSampler([size], [1.0], batch=4, epochs=3))
    parts = [list(EpochSampler([size], [1.0], batch=4, epochs=3, rank=rank, world_size=2)) for rank in (0, 1)]
    assert all(len(batch) == 4 for batch in whole)
    for batch, first, second in zip(whole, *parts, strict=True):
        assert first == batch[::2] and second == batch[1::2]
    for step in range(len(whole) + 1):
        assert list(EpochSampler([size], [1.0], batch=4, epochs=3, start_step=step)) == whole[step:]


def test_sampler_refuses_an_impossible_batch():
    with pytest.raises(UserError, match=r"positive multiple of the number of processes \(2\), got 3"):
        EpochSampler([4], [1.0], batch=3, epochs=1, world_size=2)
    with pytest.raises(UserError, match="no image is left"):
        EpochSampler([4], [0.0], batch=1, epochs=1)
    with pytest.raises(UserError, match="no image is left"):
        EpochSampler([4], [0.2], batch=1, epochs=1)


def test_a_dataset_smaller_than_a_batch_is_repeated_with_other_augmentation():
    batches = list(EpochSampler([3], [1.0], batch=8, epochs=2))
    assert len(batches) == 2
    for batch in batches:
        assert len(set(batch)) == 8
        assert sorted(np.bincount([index % 3 for _, index in batch])) == [2, 3, 3]
