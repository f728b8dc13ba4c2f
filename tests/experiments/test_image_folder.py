"""Folders of images, a class each: what is read, what is drawn, what is refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from nc_callbacks.experiments.image_files import read_image
from nc_callbacks.experiments.image_folder import ImageFolderData, Streamed

GENERATOR = np.random.default_rng(0)


def save(path, height=8, width=8, colours=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3) if colours else (height, width)
    Image.fromarray(GENERATOR.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes: 10 and 5 training images, 3 and 2 for validation, of several sizes."""
    for split, counts in (("train", {"cat": 10, "ant": 5}), ("val", {"cat": 3, "ant": 2})):
        for name, count in counts.items():
            for i in range(count):
                save(tmp_path / split / name / f"{i}.png", 8 + i, 12)
    return tmp_path


def prepared(root, **options):
    data = ImageFolderData(root, size=8, **options)
    data.setup()
    return data


def test_as_torchvision_reads_it(folder):
    save(folder / "train" / "cat" / "deeper" / "more.bmp", 20, 9)
    steps = [transforms.Resize(8), transforms.CenterCrop(8), transforms.ToTensor()]
    data = prepared(folder)
    assert (data.class_names, data.num_classes, data.image_shape) == (["ant", "cat"], 2, (3, 8, 8))
    assert data.class_counts.tolist() == [5, 11]
    for part, split in ((data.train_set, "train"), (data.val_set, "val")):
        expected = ImageFolder(folder / split, transforms.Compose(steps))
        assert expected.classes == data.class_names
        images, labels = zip(*expected, strict=True)
        ours = sorted(zip(part.tensors[0].flatten(1).tolist(), part.tensors[1].tolist(), strict=True))
        theirs = sorted(zip(torch.stack(images).flatten(1).tolist(), labels, strict=True))
        assert [label for _, label in ours] == [label for _, label in theirs]
        np.testing.assert_allclose([x for x, _ in ours], [x for x, _ in theirs], atol=1e-6)


def test_batches(folder):
    data = prepared(folder, batch_size=4)
    sizes = [len(labels) for _, labels in data.train_dataloader()]
    assert sizes == [4, 4, 4, 3]
    images, labels = next(iter(data.val_dataloader()))
    assert (images.shape, images.dtype, labels.dtype) == ((4, 3, 8, 8), torch.float32, torch.int64)
    assert labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("second", ["test", None])
def test_folder_of_validation(folder, second):
    """``test/`` in the place of ``val/``; where both are, ``val/``."""
    if second is None:
        save(folder / "test" / "dog" / "0.png")
    else:
        (folder / "val").rename(folder / second)
    assert len(prepared(folder).val_set) == 5


@pytest.mark.parametrize("straight", [True, False])
def test_share_of_each_class_without_a_second_folder(tmp_path, straight):
    counts = {"a": 10, "b": 25, "c": 2}
    for name, count in counts.items():
        for i in range(count):
            save(tmp_path / ("" if straight else "train") / name / f"{i}.png")
    data, again, other = (prepared(tmp_path, val_share=0.4, seed=seed) for seed in (0, 0, 1))
    assert torch.bincount(data.val_set.tensors[1]).tolist() == [4, 10, 1]
    assert data.class_counts.tolist() == [6, 15, 1]
    both = torch.cat([data.train_set.tensors[0], data.val_set.tensors[0]])
    assert len(both.flatten(1).unique(dim=0)) == 37
    assert torch.equal(data.val_set.tensors[0], again.val_set.tensors[0])
    assert not torch.equal(data.val_set.tensors[0], other.val_set.tensors[0])


def test_samples(folder):
    data = prepared(folder, samples=6)
    assert (len(data.train_set), data.class_counts.tolist()) == (6, [2, 4])
    assert len(data.val_set) == 5


def test_streams_what_does_not_fit(folder):
    memory, stream = prepared(folder), prepared(folder, memory=1e-9)
    assert isinstance(memory.train_set, TensorDataset)
    assert isinstance(stream.train_set, Streamed)
    assert memory.train_dataloader().num_workers == 0
    assert stream.train_dataloader().num_workers > 0
    assert prepared(folder, memory=1e-9, num_workers=0).train_dataloader().num_workers == 0
    assert stream.class_counts.tolist() == [5, 10]
    for (x, label), (y, other) in zip(memory.val_set, stream.val_set, strict=True):
        assert label == other
        assert torch.equal(x, y)


def test_channels_as_found(tmp_path):
    for name in "ab":
        for i in range(3):
            save(tmp_path / name / f"{i}.png", colours=False)
    assert prepared(tmp_path).train_set.tensors[0].shape == (4, 1, 8, 8)
    save(tmp_path / "b" / "colour.png")
    data = prepared(tmp_path)
    assert data.image_shape == (3, 8, 8)
    grey = data.train_set.tensors[0][data.train_set.tensors[1] == 0]
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_sixteen_bits_keep_their_range(tmp_path):
    values = np.array([[0, 256], [32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", 1, 2).flatten().tolist() == [0, 1, 128, 255]
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float.tif has pixels of 32 bits"):
        read_image(tmp_path / "float.tif", 1, 2)


def test_empty_class(folder):
    (folder / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"there are none in dog\. Add some, or take the folder away"):
        prepared(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_in_one_split_alone(folder, split):
    save(folder / split / "dog" / "0.png")
    with pytest.raises(ValueError, match=rf"the same classes; dog \(in {split}/ alone\)"):
        prepared(folder)


def test_no_images(folder):
    (folder / "val" / "cat" / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"No images, whatever their names say: .*val/cat/text.jpg"):
        prepared(folder)
    (folder / "val" / "cat" / "text.jpg").unlink()
    (folder / "val" / "cat" / "notes.txt").write_text("no image")
    save(folder / "train" / "loose.png")
    (folder / "train" / "cat" / ".hidden").write_text("nothing to see")
    with pytest.warns(UserWarning, match="no images in a class's folder") as caught:
        data = prepared(folder)
    assert [text for text in ("loose.png", "notes.txt", ".hidden") if any(text in str(w.message) for w in caught)] == [
        "loose.png",
        "notes.txt",
    ]
    assert (len(data.train_set), len(data.val_set)) == (15, 5)


def test_image_that_is_cut_short(folder):
    path = save(folder / "train" / "cat" / "cut.png", 64, 64)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut.png cannot be read as an image"):
        prepared(folder)


def test_one_image_of_a_class(tmp_path):
    save(tmp_path / "a" / "0.png")
    for i in range(3):
        save(tmp_path / "b" / f"{i}.png")
    with pytest.raises(ValueError, match="at least two images of each class, one of them for validation; a has one"):
        prepared(tmp_path)


def test_absent_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere, which is no folder. Set data.root"):
        prepared(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"at least two classes in .*, found none"):
        prepared(tmp_path)


@pytest.mark.parametrize("names", [["val"], ["Train", "Test"], ["train", "valid"], ["a", "b", "train"]])
def test_splits_of_other_names(names, tmp_path):
    """Neither taken for classes nor left out without a word."""
    for name in names:
        save(tmp_path / name / "a" / "0.png")
    with pytest.raises(ValueError, match=rf"or the classes themselves; found {', '.join(sorted(names))}\."):
        prepared(tmp_path)


@pytest.mark.parametrize(("options", "message"), [({"size": 0}, "size must be"), ({"val_share": 1}, "val_share must")])
def test_arguments_out_of_range(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ImageFolderData(tmp_path, **options)
