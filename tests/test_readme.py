"""What the README shows is what a reader gets."""

import re
import textwrap

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests.callbacks.common import Classifier, loader, trainer
from tests.docs.common import blocks, pasted
from tests.processes import ROOT

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
DOCS = ROOT / "docs"
TRAINER, LOOP, HEAD = blocks(README, "python")


def test_is_short():
    assert len(TEXT.splitlines()) <= 130


def test_a_head_from_class_means_takes_six_lines(tmp_path):
    assert len([line for line in HEAD.splitlines() if line.strip()]) == 6
    # The whitened means in float64 from their definition; the shrinkage is the head's own.
    check = """
    import torch

    x, y = data.train_set.tensors
    h = model.encoder(x).double().detach()
    means = torch.stack([h[y == c].mean(0) for c in range(10)])
    within = (h - means[y]).T @ (h - means[y]) / len(h)
    logits = model.decoder(model.encoder(x)).double().detach()
    fits = []
    for a in torch.logspace(-6, 0, 61, dtype=torch.float64):
        covariance = (1 - a) * within + a * within.trace() / 64 * torch.eye(64)
        weight = torch.linalg.solve(covariance, (means - means.mean(0)).T).T
        expected = h @ weight.T - (means @ torch.linalg.inv(covariance) * means).sum(1) / 2
        fits.append((expected.argmax(1) == logits.argmax(1)).double().mean().item())
    print(max(fits))
    """
    assert float(pasted(HEAD + textwrap.dedent(check), tmp_path).split()[-1]) > 0.99


def test_ten_lines_run_on_a_model(tmp_path):
    assert len([line for line in TRAINER.splitlines() if line.strip()]) <= 10
    last = pasted(TRAINER, tmp_path).strip().splitlines()[-1]
    assert re.fullmatch(r"decoder 0\.\d+", last), last
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_the_loop_runs(tmp_path):
    assert pasted(LOOP, tmp_path).count("tensor(") == 2


def test_words_are_defined_where_they_are_first_used():
    assert re.search(r"\blooks?\b", TEXT).start() == TEXT.index("look*, one streaming pass")
    assert TEXT.index("M̄") == TEXT.index("M̄, the matrix of centred class means")


def test_names_the_two_commands():
    assert 'pip install -e ".[experiments]" && python train.py' in TEXT
    assert 'pip install -e ".[dev]" && pytest' in TEXT


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
    for row in re.findall(r"^\| (.*`.*)$", (DOCS / "metrics.md").read_text(encoding="utf-8"), flags=re.MULTILINE):
        first = None
        for name in re.findall(r"`([^`]+)`", row):
            first = first or name
            listed.add(name.replace("…", first) if name.startswith("…") else name)
    assert names <= listed, names - listed
    assert len(names) > 40


def test_every_choice_of_every_group_is_listed():
    page = (DOCS / "howto" / "training_script.md").read_text(encoding="utf-8")
    for group in ("data", "model", "loss", "optimizer", "trainer", "callbacks", "logger", "experiment"):
        row = re.search(rf"^\| `{group}` \|(.*)$", page, flags=re.MULTILINE)[1]
        for path in (ROOT / "nc_callbacks" / "conf" / group).glob("*.yaml"):
            assert f"`{path.stem}`" in row, (group, path.stem)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
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
