"""Log keys are read as they were made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nc_callbacks.metrics import SPLITS, LogKey

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda text: text not in SPLITS)
layers = st.lists(st.from_regex(r"[A-Za-z0-9_]{1,6}", fullmatch=True), min_size=0, max_size=4).map(".".join)
prefixes = st.lists(names, min_size=1, max_size=3).map("/".join)
loaders = st.none() | st.integers(0, 20)


@given(names, st.sampled_from(SPLITS), layers, loaders, prefixes)
def test_what_was_made_is_read(name, split, layer, loader, prefix):
    key = LogKey(name, split, layer, loader, prefix)
    assert LogKey.parse(str(key)) == key
    assert key.is_ours


@given(
    st.text(max_size=30) | st.lists(st.sampled_from([*SPLITS, "", "nc", "dataloader_idx_0"]), max_size=5).map("/".join)
)
def test_any_text_comes_back(text):
    assert str(LogKey.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("nc/train/nc1", LogKey("nc1", "train")),
        ("nc/train/backbone.3/nc1", LogKey("nc1", "train", "backbone.3")),
        ("nc/val/nc1/dataloader_idx_0", LogKey("nc1", "val", loader=0)),
        ("nc/val/backbone.3/nc1/dataloader_idx_12", LogKey("nc1", "val", "backbone.3", 12)),
        ("exp/a/test/nc1", LogKey("nc1", "test", prefix="exp/a")),
        # A layer that is called like a split.
        ("nc/train/val/nc1", LogKey("nc1", "train", "val")),
        ("val/loss", LogKey("loss", "val", prefix="")),
        ("val/loss/dataloader_idx_1", LogKey("loss", "val", loader=1, prefix="")),
        ("val_loss/dataloader_idx_1", LogKey("val_loss", "", loader=1, prefix="")),
        ("lr-SGD/pg1", LogKey("lr-SGD/pg1", "", prefix="")),
        ("epoch", LogKey("epoch", "", prefix="")),
    ],
)
def test_forms(text, key):
    assert LogKey.parse(text) == key
    assert str(key) == text
    assert key.is_ours == (key.prefix != "")


def test_places_of_several_loaders_differ():
    places = {LogKey("nc1", "val", layer, loader).where for layer in ("", "a") for loader in (None, 0, 1)}
    assert places == {
        *("val", "val/a", "val/dataloader_idx_0", "val/dataloader_idx_1"),
        *("val/a/dataloader_idx_0", "val/a/dataloader_idx_1"),
    }
    assert LogKey("nc1", "val", "a", 1).title == "val, loader 1, a"
