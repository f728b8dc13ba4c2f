"""The loader of one's own: every sample once, equally many batches on every rank."""

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import DataLoader, IterableDataset, Sampler, SubsetRandomSampler, TensorDataset

from nc_callbacks.loader import own_loader


class TestOwnLoader:
    @pytest.mark.parametrize("world_size", [1, 2, 3, 4])
    @pytest.mark.parametrize("n", [1, 7, 8, 1003])
    def test_ranks_share_without_repeats_in_equally_many_batches(self, n, world_size):
        loader = DataLoader(TensorDataset(torch.arange(n)), batch_size=4, shuffle=True)
        seen, lengths = [], []
        for rank in range(world_size):
            own, counted = own_loader(loader, rank, world_size)
            batches = [batch[0].tolist() for batch in own]
            lengths.append(len(batches))
            seen += [sample for batch in batches[:counted] for sample in batch]
        assert sorted(seen) == list(range(n))
        assert len(set(lengths)) == 1

    def test_keeps_collate_batch_size_and_order(self):
        data = TensorDataset(torch.arange(5))
        loader = DataLoader(data, batch_size=2, shuffle=True, drop_last=True, collate_fn=lambda items: len(items))
        assert list(own_loader(loader)[0]) == [2, 2, 1]
        sequential = DataLoader(data, batch_size=2, shuffle=True)
        assert torch.cat([batch[0] for batch in own_loader(sequential)[0]]).tolist() == [0, 1, 2, 3, 4]

    def test_keeps_a_subset(self):
        loader = DataLoader(TensorDataset(torch.arange(9)), sampler=SubsetRandomSampler([7, 2, 5]), batch_size=2)
        assert torch.cat([batch[0] for batch in own_loader(loader)[0]]).tolist() == [2, 5, 7]

    def test_dataset_that_gives_whole_batches(self):
        loader = DataLoader(TensorDataset(torch.arange(6).view(3, 2)), batch_size=None, shuffle=True)
        assert [batch[0].tolist() for batch in own_loader(loader)[0]] == [[0, 1], [2, 3], [4, 5]]

    def test_iterable_dataset_and_plain_iterable(self):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(range(5))

        own, counted = own_loader(DataLoader(Stream(), batch_size=2))
        assert torch.cat(list(own)).tolist() == [0, 1, 2, 3, 4]
        assert counted is None
        batches = [(torch.zeros(2), torch.zeros(2))]
        assert own_loader(batches) == (batches, None)

    def test_subset_under_lightnings_distributed_sampler(self):
        loader = DataLoader(TensorDataset(torch.arange(9)), sampler=SubsetRandomSampler([7, 2, 5]), batch_size=2)
        wrapped = DistributedSamplerWrapper(loader.sampler, num_replicas=2, rank=0)
        loader = DataLoader(loader.dataset, sampler=wrapped, batch_size=2)
        seen = [batch[0] for rank in range(2) for batch in list(own_loader(loader, rank, 2)[0])]
        assert sorted(torch.cat(seen).tolist()) == [2, 5, 7]

    def test_sampler_that_is_not_known_warns(self):
        class FirstThree(Sampler):
            def __iter__(self):
                return iter(range(3))

            def __len__(self):
                return 3

        data = TensorDataset(torch.arange(9))
        with pytest.warns(UserWarning, match="FirstThree is not known.*all 9 samples of the TensorDataset"):
            own, _ = own_loader(DataLoader(data, sampler=FirstThree(), batch_size=2))
        assert sum(len(batch[0]) for batch in own) == 9

    def test_user_generator_is_not_touched(self):
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(TensorDataset(torch.arange(5)), batch_size=2, shuffle=True, generator=generator)
        before = generator.get_state()
        list(own_loader(loader)[0])
        assert torch.equal(generator.get_state(), before)

    def test_empty(self):
        loader = DataLoader(TensorDataset(torch.zeros(0, 3)), batch_size=2)
        with pytest.raises(ValueError, match="The loader is empty: its TensorDataset has no samples"):
            own_loader(loader)

    def test_several_loaders(self):
        loader = DataLoader(TensorDataset(torch.zeros(2, 3)))
        for loaders in ({"a": loader, "b": loader}, [loader, loader]):
            with pytest.raises(ValueError, match="Expected one loader, got 2"):
                own_loader(loaders)
