"""A hook belongs to its module alone: copies of a watched module are not watched."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from nc_callbacks import NeuralCollapse
from nc_callbacks.probe.hooks import Hook
from tests.callbacks.common import Classifier, loader, trainer


def watched():
    seen, module = [], nn.Linear(2, 2)
    module.register_forward_pre_hook(Hook(module, lambda *args: seen.append("before")), with_kwargs=True)
    module.register_forward_hook(Hook(module, lambda *args: seen.append("after")), with_kwargs=True)
    return module, seen


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def saved(module):
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled, saved, lambda m: copy.deepcopy(pickled(m))])
def test_copies_are_not_watched(copied):
    module, seen = watched()
    other = copied(module)
    x = torch.ones(1, 2)
    assert torch.equal(other(x), module.weight.sum(1) + module.bias + torch.zeros(1, 2))
    assert seen == []
    module(x)
    assert seen == ["before", "after"]


def test_a_hook_may_change_the_output():
    module = nn.Linear(2, 2)
    module.register_forward_hook(Hook(module, lambda module, args, output: 0 * output))
    assert module(torch.ones(1, 2)).abs().sum() == 0
    assert copy.deepcopy(module)(torch.ones(1, 2)).abs().sum() != 0


def test_what_was_saved_loads_without_this_package(tmp_path):
    torch.save(watched()[0], tmp_path / "module.pt")
    code = (
        "import sys, torch; sys.modules['nc_callbacks'] = None; "
        f"print(torch.load({str(tmp_path / 'module.pt')!r}, weights_only=False)(torch.ones(1, 2)).shape)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "[1, 2]" in found.stdout


class Teaching(Classifier):
    """Keeps a copy of itself from the first step on, and saves itself in mid-epoch."""

    def training_step(self, batch, batch_idx):
        if "teacher" not in vars(self):
            vars(self)["teacher"] = copy.deepcopy(self.body), copy.deepcopy(self.head)
            torch.save(self.head, io.BytesIO())
        body, head = vars(self)["teacher"]
        outputs = self(batch[0])
        with torch.no_grad():
            taught = head(body(batch[0]))
        return nn.functional.cross_entropy(outputs, batch[1]) + (taught - outputs).pow(2).mean()


def test_a_teacher_that_is_a_copy_of_the_watched_model():
    callback, model = NeuralCollapse(mode="online"), Teaching()
    trainer(callback, max_epochs=2).fit(model, loader())
    assert [int(record["nc/train/counts"].sum()) for record in callback.history] == [80, 80]
