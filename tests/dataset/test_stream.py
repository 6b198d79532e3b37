import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgh.dataset import stream
from fedgh.dataset.augmentation import Augmentation
from fedgh.dataset.base import ImageDataset
from fedgh.dataset.stream import batch_sizes, client_batches, client_rows, group_batches


def numbered(count=60, augmentation=None):
    """Image i is filled with i, so that a batch tells which examples it holds."""
    images = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1).expand(count, 1, 4, 4).contiguous()
    labels = torch.arange(count) % 3
    return ImageDataset(
        "toy", images, labels, images[:3], labels[:3], ("a", "b", "c"), (0.0,), (1 / 255,), augmentation
    )


def batches(dataset, indices, batch_size, epochs, max_steps=None, seed=0):
    generators = np.random.Generator(np.random.Philox(seed)), torch.Generator().manual_seed(seed)
    num_steps = epochs * len(batch_sizes(len(indices), batch_size))
    num_steps = num_steps if max_steps is None else min(num_steps, max_steps)
    return list(client_batches(dataset, torch.as_tensor(indices), batch_size, num_steps, *generators))


def rows(batch):
    return batch[0][:, 0, 0, 0].round().long()


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),  # the last single example joins the batch before it
        (5, 4, [5]),
        (4, 4, [4]),
        (1, 4, [1]),  # its only batch: kept
        (3, 4, [3]),
        (3, 1, [1, 1, 1]),
        (0, 4, []),
    ],
)
def test_batch_sizes(count, batch_size, sizes):
    found = batches(numbered(), torch.arange(count), batch_size, 2)
    assert [len(labels) for _, labels in found] == sizes * 2
    assert batch_sizes(count, batch_size) == sizes


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(1, 12),
    st.integers(0, 3),
    st.none() | st.integers(0, 15),
    st.sampled_from([1, 9, 64]),
)
def test_steps_yielded_are_steps_promised_and_each_epoch_covers_the_client(count, batch_size, epochs, max_steps, chunk):
    indices = torch.arange(60)[7 : 7 + count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_IMAGES", chunk)
        found = batches(numbered(), indices, batch_size, epochs, max_steps)
    per_epoch = len(batch_sizes(count, batch_size))
    assert len(found) == min(epochs * per_epoch, 999 if max_steps is None else max_steps)
    for start in range(0, len(found) - per_epoch + 1, per_epoch or 1):
        seen = torch.cat([rows(batch) for batch in found[start : start + per_epoch]]) if per_epoch else indices
        assert sorted(seen.tolist()) == indices.tolist()


def test_labels_belong_to_their_images_and_types_are_right():
    for images, labels in batches(numbered(), [3, 50, 9, 21], 3, 2):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert torch.equal(rows((images, labels)) % 3, labels)


def test_every_epoch_has_a_fresh_permutation_from_the_shuffle_generator():
    first, second = (rows(batch).tolist() for batch in batches(numbered(), torch.arange(30), 30, 2))
    generator = np.random.Generator(np.random.Philox(0))
    assert first == generator.permutation(30).tolist()
    assert second == generator.permutation(30).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 16, 4096])
def test_chunks_change_nothing_augmentation_included(chunk, monkeypatch):
    dataset = numbered(augmentation=Augmentation(1, True, True))
    whole = batches(dataset, torch.arange(50), 8, 2)
    monkeypatch.setattr(stream, "CHUNK_IMAGES", chunk)
    cut = batches(dataset, torch.arange(50), 8, 2)
    for (images, labels), (other_images, other_labels) in zip(whole, cut, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_max_steps_is_a_prefix_and_augments_no_more_than_it_needs():
    seen = []

    def counting(images, generator):
        seen.append(len(images))
        return images.clone()

    dataset = numbered(augmentation=counting)
    whole = batches(dataset, torch.arange(50), 8, 3)
    seen.clear()
    some = batches(dataset, torch.arange(50), 8, 3, max_steps=9)
    assert sum(seen) == 50 + 2 * 8
    for (images, _), (other, _) in zip(whole[:9], some, strict=True):
        assert torch.equal(images, other)


def test_the_data_set_stays_as_it_was():
    dataset = numbered(augmentation=Augmentation(1, True, True))
    before = dataset.train_images.clone()
    batches(dataset, torch.arange(50), 8, 2)
    assert torch.equal(dataset.train_images, before)


@pytest.mark.parametrize(
    "augmentation", [Augmentation(1, True, True), None, lambda i, g: i + torch.randint(9, i.shape, generator=g).byte()]
)
@pytest.mark.parametrize("ahead", [1, 2, 5, 100])
def test_batches_of_many_clients_are_those_of_each(augmentation, ahead):
    """Prepared together, taken at the same pace; those who have fewer end earlier."""
    dataset, clients = numbered(augmentation=augmentation), [range(20), range(20, 23), range(23, 60)]
    alone = [batches(dataset, list(rows), 4, 2, seed=k) for k, rows in enumerate(clients)]
    streams = group_batches(
        dataset,
        [
            client_rows(
                torch.as_tensor(rows), 4, 2 * len(batch_sizes(len(rows), 4)), np.random.Generator(np.random.Philox(k))
            )
            for k, rows in enumerate(clients)
        ],
        [torch.Generator().manual_seed(k) for k in range(3)],
        ahead,
    )
    together = [[], [], []]
    for _ in range(max(map(len, alone))):
        for found, mine in zip(together, streams, strict=True):
            found.extend(batch for batch in [next(mine, None)] if batch is not None)
    for found, wanted in zip(together, alone, strict=True):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_clients_are_augmented_in_one_go():
    calls = []

    class Counting(Augmentation):
        def apply(self, images, draws):
            calls.append(len(images))
            return super().apply(images, draws)

    dataset = numbered(augmentation=Counting(1, True, True))
    rows = [client_rows(torch.arange(20), 4, 5, np.random.Generator(np.random.Philox(k))) for k in range(3)]
    streams = group_batches(dataset, rows, [torch.Generator().manual_seed(k) for k in range(3)], 3)
    assert [len(list(mine)) for mine in streams] == [5, 5, 5]
    assert calls[0] == 3 * 3 * 4
