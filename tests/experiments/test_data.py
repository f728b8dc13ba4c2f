"""Image sets, read from small files in their real formats."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from torchvision import datasets

from nc_callbacks.experiments.data import IDX_FILES, ImageData, read_idx, stratified
from nc_callbacks.experiments.idx_files import COUNTS


def idx(values):
    """Bytes of an IDX file: magic (type 8 = unsigned byte, number of dimensions), sizes, values."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def mnist_arrays():
    generator = np.random.default_rng(0)
    return {
        train: (generator.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10)
        for train, n in ((True, 12), (False, 5))
    }


def check(data, arrays):
    data.setup()
    for dataset, (images, labels) in ((data.train_set, arrays[True]), (data.val_set, arrays[False])):
        x, y = dataset.tensors
        assert x.shape == (len(images), *data.image_shape)
        np.testing.assert_allclose(x[:, 0].numpy(), images / 255, rtol=1e-6)
        assert y.tolist() == labels.tolist()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_folder_of_idx_gz_files(name, tmp_path, mnist_arrays):
    for train, names in IDX_FILES.items():
        for file, values in zip(names, mnist_arrays[train], strict=True):
            (tmp_path / file).write_bytes(gzip.compress(idx(values)))
    check(ImageData(name, root=tmp_path, download=False), mnist_arrays)


def test_two_sets_in_folders_of_their_names(tmp_path, mnist_arrays):
    both = {"mnist": mnist_arrays, "fashion_mnist": {train: (255 - x, y) for train, (x, y) in mnist_arrays.items()}}
    for name, arrays in both.items():
        (tmp_path / name).mkdir()
        for train, names in IDX_FILES.items():
            for file, values in zip(names, arrays[train], strict=True):
                (tmp_path / name / file).write_bytes(gzip.compress(idx(values)))
    for name, arrays in both.items():
        check(ImageData(name, root=tmp_path, download=False), arrays)


@pytest.mark.parametrize(("name", "other"), [("mnist", "fashion_mnist"), ("fashion_mnist", "mnist")])
def test_files_of_the_other_set_are_refused(name, other, tmp_path):
    counts = COUNTS[other][0]
    assert sum(counts) == 60000
    labels = np.repeat(np.arange(10, dtype=np.uint8), counts)
    for file, values in zip(IDX_FILES[True], (np.zeros((60000, 28, 28), np.uint8), labels), strict=True):
        (tmp_path / file).write_bytes(gzip.compress(idx(values), 1))
    other_root = ImageData(other, root=tmp_path, download=False)
    assert len(other_root._load(True)[1]) == 60000
    with pytest.raises(ValueError, match=f"Expected the files of {name} in .*; they have as many .* those of {other}"):
        ImageData(name, root=tmp_path, download=False).setup()


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_torchvision_folder(name, folder, tmp_path, mnist_arrays):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for train, names in IDX_FILES.items():
        for file, values in zip(names, mnist_arrays[train], strict=True):
            (raw / file.removesuffix(".gz")).write_bytes(idx(values))
    check(ImageData(name, root=tmp_path, download=False), mnist_arrays)


@pytest.mark.parametrize(("name", "torchvision_class"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar(name, torchvision_class, tmp_path, monkeypatch):
    source = getattr(datasets, torchvision_class)
    # torchvision compares checksums of the real files; these are small ones of the same format.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    folder = tmp_path / source.base_folder
    folder.mkdir()
    key = "labels" if name == "cifar10" else "fine_labels"
    generator = np.random.default_rng(0)
    written = {}
    for file, _ in source.train_list + source.test_list:
        written[file] = (generator.integers(0, 256, (2, 3072), dtype=np.uint8), generator.integers(0, 10, 2).tolist())
        (folder / file).write_bytes(pickle.dumps({"data": written[file][0], key: written[file][1]}))
    names_key = source.meta["key"]
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({names_key: [str(i) for i in range(100)]}))

    data = ImageData(name, root=tmp_path, download=False)
    data.setup()
    for dataset, files in ((data.train_set, source.train_list), (data.val_set, source.test_list)):
        images = np.concatenate([written[file][0] for file, _ in files]).reshape(-1, 3, 32, 32) / 255
        np.testing.assert_allclose(dataset.tensors[0].numpy(), images, rtol=1e-6)
        assert dataset.tensors[1].tolist() == [label for file, _ in files for label in written[file][1]]


def test_digits_are_stratified_and_in_range():
    data = ImageData("digits")
    data.setup()
    counts = [torch.bincount(part.tensors[1], minlength=10) for part in (data.train_set, data.val_set)]
    assert [int(c.sum()) for c in counts] == [1437, 360]
    shares = counts[1] / (counts[0] + counts[1])
    assert shares.min() > 0.19
    assert shares.max() < 0.21
    pixels = data.train_set.tensors[0]
    assert (pixels.min(), pixels.max()) == (0, 1)
    again, other = ImageData("digits"), ImageData("digits", seed=1)
    again.setup()
    other.setup()
    assert torch.equal(again.train_set.tensors[0], pixels)
    assert not torch.equal(other.train_set.tensors[0], pixels)


@pytest.mark.parametrize(
    ("name", "files"), [("mnist", "train-images-idx3-ubyte.gz"), ("cifar10", "cifar-10-batches-py")]
)
def test_absent_data_names_the_folder_and_the_way_out(name, files, tmp_path):
    data = ImageData(name, root=tmp_path / "here", download=False)
    with pytest.raises(FileNotFoundError, match=rf"(?s){tmp_path}/here.*{files}.*data.download is false.*data=digits"):
        data.setup()


def test_unknown_name():
    with pytest.raises(ValueError, match="name must be one of digits, fashion_mnist"):
        ImageData("imagenet")


def test_broken_idx_files(tmp_path, mnist_arrays):
    images = mnist_arrays[False][0]
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(idx(images)[:-1]))
    with pytest.raises(ValueError, match=r"holds 3919 values where its header says \[5, 28, 28\]"):
        read_idx(path)
    path.write_bytes(gzip.compress(b"text"))
    with pytest.raises(ValueError, match="is no IDX file"):
        read_idx(path)


def test_samples_keep_the_shares_of_the_classes():
    data, again, other = (ImageData("digits", samples=300, seed=seed) for seed in (0, 0, 1))
    whole = ImageData("digits")
    for each in (data, again, other, whole):
        each.setup()
    assert len(data.train_set) == 300
    assert torch.equal(data.train_set.tensors[0], again.train_set.tensors[0])
    assert not torch.equal(data.train_set.tensors[0], other.train_set.tensors[0])
    shares = whole.class_counts * 300 / len(whole.train_set)
    assert (data.class_counts - shares).abs().max() < 1
    # Each is an image of the whole training set, none is there twice.
    rows = {(tuple(x.flatten().tolist()), int(y)) for x, y in whole.train_set}
    assert {(tuple(x.flatten().tolist()), int(y)) for x, y in data.train_set} <= rows
    assert len(data.train_set.tensors[0].flatten(1).unique(dim=0)) == 300
    assert torch.equal(data.val_set.tensors[0], whole.val_set.tensors[0])


def test_stratified_by_hand():
    labels = torch.tensor([2] * 50 + [0] * 30 + [1] * 20)
    assert labels[stratified(labels, 10, seed=3)].bincount().tolist() == [3, 2, 5]
    # 0.9, 0.6 and 1.5 samples: the largest remainders are rounded up.
    assert labels[stratified(labels, 3, seed=3)].bincount(minlength=3).tolist() == [1, 1, 1]
    assert stratified(labels, 100, seed=3).tolist() == list(range(100))
    with pytest.raises(ValueError, match="between 1 and the 100 there are, got 101"):
        stratified(labels, 101, seed=3)
