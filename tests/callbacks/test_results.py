"""Results of a fit in child processes, and what a checkpoint keeps of them."""

import os
import pickle
import sys

import pytest
import torch

from nc_callbacks import NeuralCollapse
from nc_callbacks.callbacks.mailbox import Mailbox
from tests.callbacks.common import Classifier, loader, trainer
from tests.processes import python

SEND = """
import pickle, sys
mailbox = pickle.load(open(sys.argv[1], "rb"))
mailbox.send({"latest": {"epoch": 3}})
print(mailbox.take())
"""


def test_a_copy_in_another_process_leaves_what_it_has_found(tmp_path):
    mailbox = Mailbox()
    mailbox.send({"latest": {}})
    assert mailbox.take() is None, "nothing is left for oneself"
    (tmp_path / "mailbox").write_bytes(pickle.dumps(mailbox))
    (tmp_path / "send.py").write_text(SEND)
    done = python(tmp_path / "send.py", tmp_path / "mailbox")
    assert done.stdout.strip() == "None", "the copy takes nothing"
    assert mailbox.take() == {"latest": {"epoch": 3}}
    assert mailbox.take() is None


@pytest.mark.parametrize("name", ["latest", "history", "head", "num_classes"])
def test_whatever_is_read_first_is_what_the_copy_has_found(name, monkeypatch):
    callback = NeuralCollapse()
    copy = pickle.loads(pickle.dumps(callback))
    run = trainer(copy)
    run.fit(Classifier(), loader())
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 0)
        child.setattr("nc_callbacks.callbacks.results.runs_in_children", lambda trainer: True)
        copy.send_results(run)
    assert repr(getattr(callback, name)) == repr(getattr(copy, name)) != repr(getattr(NeuralCollapse(), name))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_fit_in_forked_processes():
    """As in a notebook: the callback in this process knows what its copies have found."""
    code = """
import torch
from nc_callbacks import NeuralCollapse
from tests.callbacks.common import Classifier, loader, trainer
callback = NeuralCollapse()
run = trainer(callback, devices=2, strategy="ddp_notebook", max_epochs=2)
run.fit(Classifier(), loader(shuffle=False))
assert callback.head == "head" and callback.num_classes == 4
assert [record["epoch"] for record in callback.history] == [0, 1]
assert callback.latest["nc/train/nc1"] == callback.history[-1]["nc/train/nc1"]
assert abs(callback.latest["nc/train/nc1"] / float(run.callback_metrics["nc/train/nc1"]) - 1) < 1e-5
print("same")
"""
    done = python("-c", code)
    assert done.stdout.strip().endswith("same"), done.stderr


def test_checkpoints_hold_the_history(tmp_path):
    callback = NeuralCollapse()
    run = trainer(callback, max_epochs=3)
    run.fit(Classifier(), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][callback.state_key]
    other = NeuralCollapse()
    other.load_state_dict(state)
    assert [record["epoch"] for record in other.history] == [0, 1, 2]
    assert other.latest.keys() == other.history[-1].keys() > {"epoch", "step", "nc/train/nc1"}
    assert other.latest["nc/train/nc1"] == callback.latest["nc/train/nc1"]
    # The last look is one of those that a repeated fit makes again; what is before it stays.
    other.forget_from(3)
    assert other.latest["epoch"] == 2
    other.forget_from(2)
    assert other.latest == {}
    assert [record["epoch"] for record in other.history] == [0, 1]
    other.load_state_dict(state)
    for key, value in callback.history[-1].items():
        assert torch.equal(torch.as_tensor(other.history[-1][key]), torch.as_tensor(value)), key
    # Checkpoints of earlier versions hold the list itself.
    other.load_state_dict({"history": callback.history, "num_classes": 4})
    assert other.history == callback.history
