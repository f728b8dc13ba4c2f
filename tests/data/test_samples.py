"""Which samples a look takes, and in what batches: what an epoch of training takes, each once."""

import random
import threading
from itertools import cycle

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from nc_callbacks.data.loader import own_loaders

DATA = TensorDataset(torch.arange(9))


def batches(loader, rank=0, world_size=1, **settings):
    (own,) = own_loaders(loader, rank, world_size, **settings)
    found = [batch[0].tolist() for batch in own.loader]
    assert all(own.indices_of(number) == batch for number, batch in enumerate(found) if own.counts(number))
    return found


def flat(batches):
    return [index for batch in batches for index in batch]


class Order(Sampler):
    """Gives what `order` makes of a random generator, and counts its epochs."""

    def __init__(self, order):
        self.order, self.rng, self.epochs = order, random.Random(0), 0

    def __len__(self):
        return 9

    def __iter__(self):
        self.epochs += 1
        return iter(self.order(self.rng))


class TestLastBatch:
    def test_what_a_sequential_loader_drops_is_never_trained_on(self):
        assert batches(DataLoader(DATA, 4, drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert batches(DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 4, True))) == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
        ]
        assert batches(DataLoader(DATA, 4, drop_last=True), divide_batch=2) == [[0, 1], [2, 3], [4, 5], [6, 7]]
        assert batches(DataLoader(DATA, 10, drop_last=True)) == [list(range(9))]

    def test_two_ranks_drop_what_they_drop_in_training(self):
        seen = []
        for rank in range(2):
            sampler = DistributedSampler(DATA, 2, rank, shuffle=False)
            loader = DataLoader(DATA, 2, sampler=sampler, drop_last=True)
            assert batches(loader, rank, 2) == [batch.tolist() for (batch,) in loader]
            seen += batches(loader, rank, 2)
        assert len(seen) == 4

    @pytest.mark.parametrize(("size", "expected"), [(4, [4, 3, 2]), (8, [7, 2]), (2, [2, 2, 2, 3]), (3, [3, 3, 3])])
    def test_none_of_one_where_training_has_none(self, size, expected):
        found = batches(DataLoader(DATA, size, shuffle=True, drop_last=True))
        assert [len(batch) for batch in found] == expected
        assert flat(found) == list(range(9))

    def test_of_one_where_training_has_one(self):
        assert [len(batch) for batch in batches(DataLoader(DATA, 4, shuffle=True))] == [4, 4, 1]

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
    def test_ranks_stay_in_step(self, size):
        for n in range(4, 14):
            data = TensorDataset(torch.arange(n))
            loader = DataLoader(data, size, shuffle=True, drop_last=True)
            owns = [own_loaders(loader, rank, 3)[0] for rank in range(3)]
            assert len({len(own) for own in owns}) == 1
            counted = [
                i for own in owns for number in range(len(own)) if own.counts(number) for i in own.indices_of(number)
            ]
            assert sorted(counted) == list(range(n))


class TestBulkLoading:
    @pytest.mark.parametrize("inner", [SequentialSampler(DATA), RandomSampler(DATA)])
    def test_lists_of_indices_in_order(self, inner):
        class Bulk(TensorDataset):
            def __getitem__(self, indices):
                asked.append(indices)
                return super().__getitem__(torch.tensor(indices))

        asked = []
        data = Bulk(torch.arange(9))
        data.lock = threading.Lock()  # read in this process, where it is seen what is asked for
        loader = DataLoader(data, batch_size=None, sampler=BatchSampler(inner, 4, drop_last=False))
        assert batches(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]] == asked
        assert batches(loader, divide_batch=2)[:2] == [[0, 1], [2, 3]]
        assert batches(loader, limit=1) == [[0, 1, 2, 3]]
        assert [batches(loader, rank, 2) for rank in range(2)] == [[[0, 2, 4, 6], [8]], [[1, 3, 5, 7], [0, 1]]]


class TestSamplers:
    def test_a_weight_of_zero_is_never_trained_on(self):
        weights = torch.tensor([1.0, 0, 1, 0, 0, 0, 0, 0, 2])
        assert batches(DataLoader(DATA, 4, sampler=WeightedRandomSampler(weights, 50))) == [[0, 2, 8]]

    def test_weights_of_the_first_samples_alone(self):
        assert flat(batches(DataLoader(DATA, 4, sampler=WeightedRandomSampler(torch.ones(5), 50)))) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("indices", [[3, 1, 3, 1, 5], torch.tensor([3, 1, 3, 1, 5])], ids=["list", "tensor"])
    def test_a_subset_that_names_samples_twice(self, indices):
        assert flat(batches(DataLoader(DATA, 4, sampler=SubsetRandomSampler(indices)))) == [1, 3, 5]

    @pytest.mark.parametrize(
        "make",
        [
            lambda kind: kind(DATA),
            lambda kind: kind(range(9)),
            lambda kind: kind(torch.ones(9), 9),
            lambda kind: kind(DATA, num_replicas=1, rank=0, shuffle=False),
        ],
        ids=["SequentialSampler", "SubsetRandomSampler", "WeightedRandomSampler", "DistributedSampler"],
    )
    def test_an_order_of_its_own_in_a_subclass_of_torchs(self, make, request):
        parent = getattr(torch.utils.data, request.node.callspec.id)

        class EverySecond(parent):
            def __iter__(self):
                return iter([1, 3, 5, 7, 7])

            def __len__(self):
                return 5

        loader = DataLoader(DATA, 3, sampler=make(EverySecond), drop_last=True)
        assert flat(batches(loader)) == [1, 3, 5, 7]

    def test_over_a_part_of_the_data(self):
        assert batches(DataLoader(DATA, 4, sampler=SequentialSampler(range(6)))) == [[0, 1, 2, 3], [4, 5]]
        assert batches(DataLoader(DATA, 4, sampler=RandomSampler(range(6)))) == [[0, 1, 2, 3], [4, 5]]

    @pytest.mark.parametrize(
        ("order", "seen"),
        [
            (lambda rng: rng.sample(range(9), 9), list(range(9))),
            (lambda rng: [5, 1, 5, 3], [1, 3, 5]),
            (lambda rng: torch.tensor([5, 1, 5, 3]), [1, 3, 5]),
            (lambda rng: rng.sample([1, 3, 5], 3) * 2, [1, 3, 5]),
        ],
        ids=["all", "a part", "a part, in a tensor", "a part, shuffled, with repeats"],
    )
    def test_of_ones_own(self, order, seen, recwarn):
        sampler = Order(order)
        assert flat(batches(DataLoader(DATA, 4, sampler=sampler))) == seen
        assert sampler.epochs == 0
        assert not [warning for warning in recwarn if "not known" in str(warning.message)]

    @pytest.mark.parametrize(
        "order",
        [
            lambda rng: rng.sample(range(9), 3),
            lambda rng: iter(lambda: rng.randrange(9), None),
            lambda rng: cycle([1, 3]),
            lambda rng: ["a", "b"],
        ],
        ids=["another part each epoch", "without an end", "a part without an end", "no indices"],
    )
    def test_of_which_two_epochs_say_nothing(self, order):
        with pytest.warns(UserWarning, match="Order is not known.*all 9 samples of the TensorDataset"):
            found = batches(DataLoader(DATA, 4, sampler=Order(order)))
        assert flat(found) == list(range(9))

    def test_of_ones_own_on_several_ranks(self):
        with pytest.warns(UserWarning, match="Order is not known"):
            found = batches(DataLoader(DATA, 4, sampler=Order(lambda rng: [5, 1])), 0, 2)
        assert flat(found) == [0, 2, 4, 6, 8]


class TestBatchSamplers:
    def test_batches_keep_their_make_up(self):
        of_sizes = [[8, 1], [0, 2, 3, 4], [5], [6, 7]]
        loader = DataLoader(DATA, batch_sampler=Order(lambda rng: of_sizes))
        assert batches(loader) == of_sizes
        assert batches(loader, limit=2) == of_sizes[:2]
        assert batches(loader, divide_batch=2) == [[8], [1], [0, 2], [3, 4], [5], [6], [7]]

    def test_repeats_are_left_out(self):
        loader = DataLoader(DATA, batch_sampler=Order(lambda rng: [[0, 1, 1], [1, 0], [2, 0]]))
        assert batches(loader) == [[0, 1], [2]]

    def test_of_another_part_each_epoch(self):
        with pytest.warns(UserWarning, match="Order is not known"):
            found = batches(DataLoader(DATA, batch_sampler=Order(lambda rng: [rng.sample(range(9), 2)])))
        assert flat(found) == list(range(9))

    def test_of_ones_own_on_several_ranks(self):
        of_three = Order(lambda rng: [[0, 1, 2], [3, 4, 5], [6, 7, 8]])
        of_three.batch_size = 3
        with pytest.warns(UserWarning, match="Order is not known"):
            assert batches(DataLoader(DATA, batch_sampler=of_three), 0, 2) == [[0, 2, 4], [6, 8]]
        with pytest.warns(UserWarning, match="Order is not known"):
            assert batches(DataLoader(DATA, batch_sampler=of_three), 1, 2) == [[1, 3, 5], [7]]

    def test_a_subclass_of_torchs(self):
        class Sorted(BatchSampler):
            def __iter__(self):
                return iter(sorted(super().__iter__(), reverse=True))

        loader = DataLoader(DATA, batch_sampler=Sorted(SequentialSampler(DATA), 4, False))
        assert batches(loader) == [[8], [4, 5, 6, 7], [0, 1, 2, 3]]
