"""What the README shows is what a reader gets."""

import re
import textwrap

import pytest

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests.callbacks.common import Classifier, loader, trainer
from tests.processes import ROOT, python

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

# Written without this package in mind: a LightningModule and a LightningDataModule as in Lightning's own guide.
MY_PROJECT = """
import lightning as L
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset


class MyModel(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.decoder = nn.Linear(32, 5)

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y), prog_bar=True)

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=1e-3)


class MyData(L.LightningDataModule):
    def setup(self, stage):
        torch.manual_seed(0)
        y = torch.arange(100) % 5
        self.data = TensorDataset(torch.randn(100, 8, 8) + y[:, None, None], y)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=10, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.data, batch_size=10)
"""


def printed(block, folder):
    """The last line that the block prints, pasted into a file."""
    (folder / "my_project.py").write_text(MY_PROJECT)
    (folder / "pasted.py").write_text(block)
    run = python(folder / "pasted.py", folder=folder)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().splitlines()[-1]


def test_a_head_from_class_means_takes_six_lines(tmp_path):
    (block,) = (block for block in BLOCKS if "from_loader" in block)
    assert len([line for line in block.splitlines() if line.strip()]) == 6
    # M̄ in float64 from its definition.
    check = """
    import torch

    x, y = data.data.tensors
    h = model.encoder(x).double()
    means = torch.stack([h[y == c].mean(0) for c in range(5)])
    centred = means - means.mean(0)
    print((model.decoder.weight - centred / torch.linalg.matrix_norm(centred, 2)).abs().max().item())
    """
    assert float(printed(block + textwrap.dedent(check), tmp_path)) < 1e-6


@pytest.mark.parametrize("block", [block for block in BLOCKS if "from_loader" not in block], ids=["trainer", "loop"])
def test_code_runs_pasted_into_a_file(block, tmp_path):
    last = printed(block, tmp_path)
    if "my_project" in block:
        assert re.fullmatch(r"decoder \d+\.\d+", last), last
        assert len(block.strip().splitlines()) <= 10
    else:
        assert last.count("tensor(") == 2


def test_names_the_two_commands():
    assert 'pip install -e ".[experiments]" && python train.py' in README
    assert 'pip install -e ".[dev]" && pytest' in README


def test_every_log_key_is_in_the_tables():
    callbacks = [
        NeuralCollapse(ood_loader=loader(3), mse_weight_decay=0.1),
        WeightMeanAlignment(a2_residual=True, implicit="full"),
        QuasiInterpolation(),
        FeatureSpectrum(),
    ]
    trainer(*callbacks).fit(Classifier(), loader())
    names = {key.rsplit("/", 1)[1] for c in callbacks for key, v in c.latest.items() if isinstance(v, float)}
    names -= {"epoch", "step"}
    # `nc2_etf`, `…_weights` in one row stands for both.
    listed = set()
    for row in re.findall(r"^\|? ?(.*`.*)$", README, flags=re.MULTILINE):
        first = None
        for name in re.findall(r"`([^`]+)`", row):
            first = first or name
            listed.add(name.replace("…", first) if name.startswith("…") else name)
    assert names <= listed, names - listed
    assert len(names) > 40


def test_every_choice_of_every_group_is_listed():
    for group in ("data", "model", "loss", "optimizer", "trainer", "callbacks", "logger", "experiment"):
        row = re.search(rf"^\| `{group}` \|(.*)$", README, flags=re.MULTILINE)[1]
        for path in (ROOT / "nc_callbacks" / "conf" / group).glob("*.yaml"):
            assert f"`{path.stem}`" in row, (group, path.stem)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_each_row_of_what_works_names_tests_that_are_there():
    page = (ROOT / "docs" / "works_with.md").read_text()
    rows = page.partition("## Trainers' settings, data and labels")[2]
    rows = [row.strip("|").split("|") for row in rows.splitlines() if row.startswith("| ")][2:]
    assert len(rows) >= 20
    for what, _, tests in rows:
        named = re.findall(r"`(tests/[^`]+)`", tests)
        assert named or tests.strip() == "the same", what
        for test in named:
            file, _, name = test.partition("::")
            defined = re.search(rf"^(class|def) {name}\b", (ROOT / file).read_text(), flags=re.MULTILINE)
            assert defined or not name, test
