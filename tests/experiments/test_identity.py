"""Which data a run had: the file in its folder, and a checksum that knows a changed pixel."""

import hashlib
import json

import numpy as np
import torch
from PIL import Image

from nc_callbacks.experiments.data import ImageData
from nc_callbacks.experiments.identity import data_identity, write_data_file
from nc_callbacks.experiments.image_folder import ImageFolderData


def digits(**options):
    data = ImageData("digits", **options)
    data.setup()
    return data


def test_file_of_a_run(tmp_path):
    write_data_file(digits(), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "data.json").read_text())
    assert written == data_identity(digits())
    assert (written["name"], written["train"], written["val"]) == ("digits", 1437, 360)
    assert written["image_shape"] == [1, 8, 8]
    assert sum(written["class_counts"]) == 1437
    assert written["classes"] is None


def test_checksum_by_hand():
    data = digits()
    content = b""
    for part in (data.train_set, data.val_set):
        for tensor, kind in zip(part.tensors, ("float32", "int64"), strict=True):
            content += f"torch.{kind} {tuple(tensor.shape)};".encode() + np.asarray(tensor).tobytes()
    assert data_identity(data)["checksum"] == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_checksum_knows_what_changed():
    first, other_split = data_identity(digits())["checksum"], data_identity(digits(seed=1))["checksum"]
    changed = digits()
    changed.val_set.tensors[0][3, 0, 2, 2] += 1 / 16
    relabelled = digits()
    relabelled.train_set.tensors[1][:2] = relabelled.train_set.tensors[1][:2].flip(0)
    assert not torch.equal(relabelled.train_set.tensors[1], digits().train_set.tensors[1])
    seen = {first, other_split, *(data_identity(data)["checksum"] for data in (changed, relabelled))}
    assert len(seen) == 4
    assert data_identity(digits())["checksum"] == first


def test_folder_of_images(tmp_path):
    for name in ("über", "ant"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((8, 8), 40 * i, dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    memory, stream = (ImageFolderData(tmp_path, size=8, memory=memory) for memory in (1, 1e-9))
    memory.setup()
    stream.setup()
    assert data_identity(memory)["classes"] == ["ant", "über"]
    assert data_identity(memory)["checksum"].startswith("sha256:")
    assert data_identity(stream)["checksum"] is None
    assert data_identity(stream)["class_counts"] == [2, 2]
