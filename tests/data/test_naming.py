"""What figures call the data."""

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from nc_callbacks.data.naming import name_of_data
from nc_callbacks.experiments.data import ImageData
from nc_callbacks.experiments.image_folder import ImageFolderData


class Leaves(Dataset):
    def __getitem__(self, index):
        return torch.zeros(2), index

    def __len__(self):
        return 4


class Built(TensorDataset):
    builder_name = "mnist"


PLAIN = TensorDataset(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DataLoader(Leaves()), "Leaves"),
        (DataLoader(Subset(Subset(Leaves(), [0, 1]), [0])), "Leaves"),
        (CombinedLoader({"a": DataLoader(Leaves()), "b": DataLoader(PLAIN)}), "Leaves"),
        (DataLoader(Built(torch.zeros(4, 2))), "mnist"),
        (DataLoader(PLAIN), ""),
        (DataLoader(ConcatDataset([Leaves(), PLAIN])), ""),
        ([(torch.zeros(2, 2), torch.zeros(2))], ""),
        (None, ""),
    ],
)
def test_the_set_that_is_read_is_named_unless_its_class_says_nothing(loader, expected):
    assert name_of_data(None, loader) == expected
    assert name_of_data(LightningDataModule(), loader) == expected


def test_a_data_module_that_has_a_name_goes_first(tmp_path):
    assert name_of_data(ImageData("digits"), DataLoader(Leaves())) == "digits"
    assert name_of_data(ImageFolderData(tmp_path / "leaves"), None) == "leaves"
    assert name_of_data(ImageFolderData(tmp_path, name="flowers"), None) == "flowers"
