"""Names of data and classes in the papers' figures."""

import json

from nc_callbacks.figures import papers
from nc_callbacks.figures.run_names import class_names, data_name
from nc_callbacks.runs.folder import read
from tests.report.common import curves, make_run

NAMES = ["ant", "bee", "cat", "dog"]


def run_of(folder, classes):
    data = {"name": "image_folder", "root": "/somewhere/beasts"}
    make_run(folder, found=curves(), data=data)
    (folder / "data.json").write_text(json.dumps({"classes": classes}))
    return read(folder)[1][0]


def test_a_folder_of_images_has_its_own_name_and_classes(tmp_path):
    run = run_of(tmp_path / "run", NAMES)
    assert (data_name(run), class_names(run)) == ("beasts", NAMES)
    cosines = papers.cosine_and_accuracy_grid([run]).axes[0]
    assert cosines.get_title() == "beasts, tanh"
    assert [text.get_text() for text in cosines.get_legend().get_texts()] == NAMES
    figure = papers.near_optimality_grid([run])
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == NAMES
        assert axes.get_xticks().tolist() == [0, 1, 2, 3]


def test_classes_without_names_have_numbers(tmp_path):
    run = run_of(tmp_path / "run", None)
    assert class_names(run) == []
    texts = papers.cosine_and_accuracy_grid([run]).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["class 0", "class 1", "class 2", "class 3"]
    (tmp_path / "run" / "data.json").write_text("{broken")
    assert class_names(run) == []
    (tmp_path / "run" / "data.json").unlink()
    assert class_names(run) == []


def test_several_seeds_share_their_names_in_the_legend(tmp_path):
    runs = [run_of(tmp_path / f"run{seed}", NAMES) for seed in (0, 1)]
    cosines, accuracies = papers.cosine_and_accuracy_grid(runs).axes[:2]
    assert len(cosines.lines) == 2 * len(NAMES)
    assert [text.get_text() for text in cosines.get_legend().get_texts()] == NAMES
    entries = [text.get_text() for text in accuracies.get_legend().get_texts()]
    assert entries == ["W, train", "W, val", "M̄, train", "M̄, val"]
