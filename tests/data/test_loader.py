"""The loader of one's own: every sample once, equally many batches on every rank."""

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    get_worker_info,
)

from nc_callbacks.data.loader import distinct_samples, own_loaders, single_loaders


def own(loader, rank=0, world_size=1, **settings):
    (single,) = own_loaders(loader, rank, world_size, **settings)
    return single


class Numbers(Dataset):
    """0…4, and what a worker process adds to them."""

    added = 0

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index + self.added


def add_100(worker):
    get_worker_info().dataset.added = 100 * (1 + worker)


class TestOwnLoader:
    @pytest.mark.parametrize("world_size", [1, 2, 3, 4])
    @pytest.mark.parametrize("n", [1, 7, 8, 1003])
    def test_ranks_share_without_repeats_in_equally_many_batches(self, n, world_size):
        loader = DataLoader(TensorDataset(torch.arange(n)), batch_size=4, shuffle=True)
        seen, lengths = [], []
        for rank in range(world_size):
            mine = own(loader, rank, world_size)
            batches = [batch[0].tolist() for batch in mine.loader]
            lengths.append(len(batches))
            counted = [number for number in range(len(batches)) if mine.counts(number)]
            seen += [sample for number in counted for sample in batches[number]]
            assert all(mine.indices_of(number) == batches[number] for number in counted)
        assert sorted(seen) == list(range(n))
        assert len(set(lengths)) == 1

    def test_keeps_collate_batch_size_and_order(self):
        data = TensorDataset(torch.arange(5))
        loader = DataLoader(data, batch_size=2, shuffle=True, collate_fn=lambda items: len(items))
        assert list(own(loader).loader) == [2, 2, 1]
        sequential = DataLoader(data, batch_size=2, shuffle=True)
        assert torch.cat([batch[0] for batch in own(sequential).loader]).tolist() == [0, 1, 2, 3, 4]

    def test_worker_processes_start_as_in_training(self):
        loader = DataLoader(Numbers(), batch_size=3, shuffle=True, num_workers=2, worker_init_fn=add_100)
        assert [batch.tolist() for batch in own(loader).loader] == [[100, 101, 102], [203, 204]]

    def test_a_tensor_dataset_is_read_batch_by_batch_as_its_rows_are(self):
        data = TensorDataset(torch.randn(7, 3), torch.arange(7))
        whole = own(DataLoader(data, batch_size=3, shuffle=True)).loader
        rows = DataLoader([data[i] for i in range(7)], batch_size=3)
        assert not isinstance(whole, DataLoader)
        for batch, expected in zip(whole, rows, strict=True):
            assert type(batch) is type(expected)
            assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))

        class Doubled(TensorDataset):
            def __getitem__(self, index):
                return tuple(2 * tensor for tensor in super().__getitem__(index))

        doubled = own(DataLoader(Doubled(*data.tensors), batch_size=7)).loader
        assert torch.equal(next(iter(doubled))[1], 2 * torch.arange(7))

    def test_keeps_a_subset(self):
        loader = DataLoader(TensorDataset(torch.arange(9)), sampler=SubsetRandomSampler([7, 2, 5]), batch_size=2)
        assert torch.cat([batch[0] for batch in own(loader).loader]).tolist() == [2, 5, 7]

    def test_dataset_that_gives_whole_batches(self):
        loader = DataLoader(TensorDataset(torch.arange(6).view(3, 2)), batch_size=None, shuffle=True)
        assert [batch[0].tolist() for batch in own(loader).loader] == [[0, 1], [2, 3], [4, 5]]

    def test_stream_that_gives_whole_batches(self):
        class Stream(IterableDataset):
            def __iter__(self):
                yield from (torch.arange(3), torch.arange(3, 5))

        stream = own(DataLoader(Stream(), batch_size=None))
        assert [batch.tolist() for batch in stream.loader] == [[0, 1, 2], [3, 4]]
        assert stream.counts(10**6)

    @pytest.mark.parametrize(("drop_last", "seen"), [(True, [0, 1, 2, 3]), (False, [0, 1, 2, 3, 4])])
    def test_iterable_dataset_and_plain_iterable(self, drop_last, seen):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(range(5))

        stream = own(DataLoader(Stream(), batch_size=2, drop_last=drop_last))
        assert torch.cat(list(stream.loader)).tolist() == seen
        assert stream.counts(10**6)
        assert stream.indices_of(0) is None
        batches = [(torch.zeros(2), torch.zeros(2))]
        assert own(batches).loader is batches

    def test_subset_under_lightnings_distributed_sampler(self):
        loader = DataLoader(TensorDataset(torch.arange(9)), sampler=SubsetRandomSampler([7, 2, 5]), batch_size=2)
        wrapped = DistributedSamplerWrapper(loader.sampler, num_replicas=2, rank=0)
        loader = DataLoader(loader.dataset, sampler=wrapped, batch_size=2)
        seen = [batch[0] for rank in range(2) for batch in list(own(loader, rank, 2).loader)]
        assert sorted(torch.cat(seen).tolist()) == [2, 5, 7]

    def test_smaller_batches(self):
        loader = DataLoader(TensorDataset(torch.arange(9)), batch_size=4)
        assert [len(batch[0]) for batch in own(loader, divide_batch=2).loader] == [2, 2, 2, 2, 1]
        assert [len(batch[0]) for batch in own(loader, divide_batch=64).loader] == [1] * 9

    def test_user_generator_is_not_touched(self):
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(TensorDataset(torch.arange(5)), batch_size=2, shuffle=True, generator=generator)
        before = generator.get_state()
        list(own(loader).loader)
        assert torch.equal(generator.get_state(), before)

    def test_empty(self):
        loader = DataLoader(TensorDataset(torch.zeros(0, 3)), batch_size=2)
        with pytest.raises(ValueError, match="The loader is empty: its TensorDataset has no samples"):
            own(loader)
        with pytest.raises(ValueError, match="The loader is empty: a list without loaders"):
            own_loaders([])


class TestSeveralLoaders:
    a = DataLoader(TensorDataset(torch.arange(3)), batch_size=2)
    b = DataLoader(TensorDataset(torch.arange(10, 15)), batch_size=2)

    @pytest.mark.parametrize(
        "collection",
        [
            [a, b],
            (a, b),
            {"a": a, "b": b},
            {"a": a, "rest": [b]},
            CombinedLoader([a, b]),
            CombinedLoader({"a": a, "b": b}),
        ],
    )
    def test_each_is_gone_through_once(self, collection):
        assert single_loaders(collection) == [self.a, self.b]
        loaders = own_loaders(collection)
        seen = [sample for mine in loaders for batch in mine.loader for sample in batch[0].tolist()]
        assert seen == [0, 1, 2, 10, 11, 12, 13, 14]
        # Indices count on, as in a ConcatDataset.
        assert [mine.indices_of(0) for mine in loaders] == [[0, 1], [3, 4]]

    def test_one_loader_is_no_collection(self):
        batches = [(torch.zeros(2), torch.zeros(2))]
        assert single_loaders(self.a) == [self.a]
        assert single_loaders(batches) == [batches]


class TestDistinctSamples:
    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize("world_size", [2, 3, 4])
    @pytest.mark.parametrize("n", [1, 2, 7, 8, 21, 101])
    def test_repeats_of_the_distributed_sampler_are_left_out(self, n, world_size, shuffle):
        data, seen = TensorDataset(torch.arange(n)), []
        for rank in range(world_size):
            sampler = DistributedSampler(data, world_size, rank, shuffle=shuffle)
            loader = DataLoader(data, batch_size=4, sampler=sampler)
            for number, (batch,) in enumerate(loader):
                seen += batch[: distinct_samples(loader, number, len(batch), rank, world_size)].tolist()
        assert sorted(seen) == list(range(n))

    def test_wrapped_sampler(self):
        data, seen = TensorDataset(torch.arange(9)), []
        for rank in range(2):
            torch.manual_seed(0)  # ranks draw the same order
            sampler = DistributedSamplerWrapper(SubsetRandomSampler([7, 2, 5]), num_replicas=2, rank=rank)
            loader = DataLoader(data, batch_size=2, sampler=sampler)
            for number, (batch,) in enumerate(loader):
                seen += batch[: distinct_samples(loader, number, len(batch), rank, 2)].tolist()
        assert sorted(seen) == [2, 5, 7]

    def test_samplers_that_do_not_say(self):
        data = TensorDataset(torch.arange(9))
        one_process, own_sampler = DataLoader(data, 4), DataLoader(data, 4, sampler=[0, 1, 2])
        assert distinct_samples(one_process, 0, 4, 0, 1) == 4
        assert distinct_samples(own_sampler, 0, 3, 0, 2) is None
        dropping = DistributedSampler(data, 2, 1, drop_last=True)
        assert distinct_samples(DataLoader(data, 4, sampler=dropping), 0, 4, 1, 2) == 4
