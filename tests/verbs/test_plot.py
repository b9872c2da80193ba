"""Curves of runs, from their tables to a picture in which nothing is clipped."""

import csv

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from geomim.cli import main
from geomim.verbs.plot import _panels, plot, read_figures


def write_run(folder, rows):
    folder.mkdir(parents=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def figures(speed=100.0, scale=1.0, term="reconstruction", steps=10):
    rows = []
    for step in range(1, steps + 1):
        loss = scale / step
        rows.append({"step": 10 * step, "loss": loss, term: loss, "learning_rate": 1e-3 * step, "images": 600 * step})
        rows[-1] |= {"images_per_second": speed}
    rows[-1] |= {"knn": 0.5, "knn/random": 0.3, "knn/pixels": 0.2, "embedding_cosine": 0.1}
    rows[-1] |= {f"prediction_cosine/{term}": 0.4, f"target_cosine/{term}": 0.2}
    return rows


def test_steps_images_and_minutes_of_training(tmp_path):
    rows = [*figures(steps=2), {"step": 25, "knn": 0.7}, {"step": 30, "loss": 0.1, "images": 1800}]
    rows[-1]["images_per_second"] = 10.0
    path = write_run(tmp_path / "run", rows) / "metrics.csv"
    knn = read_figures(path, "steps")["knn"]
    assert knn[0].tolist() == [20, 25] and knn[1].tolist() == [0.5, 0.7]
    assert read_figures(path, "images")["loss"][0].tolist() == [600, 1200, 1800]
    np.testing.assert_allclose(read_figures(path, "minutes")["loss"][0], [0.1, 0.2, 1.2])
    np.testing.assert_allclose(read_figures(path, "minutes")["knn"][0], [0.2, 0.7])


def test_panels_hold_what_belongs_together_and_nothing_twice(tmp_path):
    one = read_figures(write_run(tmp_path / "one", figures()) / "metrics.csv", "steps")
    panels = _panels({"one": one})
    assert "reconstruction" not in panels  # it is the loss
    assert list(panels["kNN accuracy"]) == ["knn", "knn/random", "knn/pixels"]
    assert list(panels["cosine of two patches: reconstruction"].values()) == ["predictions", "targets"]
    rows = [row | {"latent": 0.1, "grad_norm": 1.0} for row in figures()]
    other = read_figures(write_run(tmp_path / "other", rows) / "metrics.csv", "steps")
    assert {"latent", "grad norm"} <= set(_panels({"one": one, "other": other}))


def test_some_panels_are_chosen_by_words_of_their_titles(tmp_path, capsys):
    run = str(write_run(tmp_path / "run", figures()))
    heights = []
    for words in ([], ["--only", "knn,loss"]):
        assert main(["plot", run, "--out", str(tmp_path / "a.png"), *words]) == 0
        heights.append(Image.open(tmp_path / "a.png").height)
    assert heights[1] < 0.6 * heights[0]  # a row in place of two
    assert main(["plot", run, "--out", str(tmp_path / "b.png"), "--only", "colour"]) == 1
    assert "no panel has colour in its title; there are loss, kNN accuracy" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_runs_of_one_name_are_told_apart(tmp_path, capsys):
    for name in ("a/mae", "b/mae"):
        write_run(tmp_path / name, figures())
    plot([str(tmp_path / name) for name in ("a/mae", "b/mae", "a/mae")], str(tmp_path / "a.png"))
    plot([str(tmp_path / "b/mae")], str(tmp_path / "a.png"))
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(": a/mae, b/mae") and said[1].endswith(": mae")


@pytest.mark.parametrize("names", [["mae"], ["mae", "latent_mim_with_a_name_that_is_long" * 6, "x", *"abcdefghij"]])
def test_no_word_is_clipped_and_floors_are_dashed(tmp_path, monkeypatch, names):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *given, **named: drawn.append(self) or save(self, *given, **named)
    )
    runs = [str(write_run(tmp_path / name, figures(scale=number + 1))) for number, name in enumerate(names)]
    out = plot(runs, str(tmp_path / "new" / "curves.png"), "images")
    with Image.open(out) as image:
        assert image.format == "PNG"
    assert sorted(file.name for file in out.parent.iterdir()) == ["curves.png"]
    figure, (width, height) = drawn[0], drawn[0].canvas.get_width_height()
    boxes = [axes.get_tightbbox() for axes in figure.axes if axes.axison] + [figure.legends[0].get_window_extent()]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    accuracy = next(axes for axes in figure.axes if axes._left_title.get_text() == "kNN accuracy")
    assert [line.get_linestyle() for line in accuracy.lines[:3]] == ["-", "--", ":"]
    assert len({line.get_color() for line in accuracy.lines}) == len(names)
    assert len(figure.legends[0].get_texts()) == len(names)


def test_a_run_without_figures_is_a_sentence_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", figures())
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "metrics.csv").write_text("step,loss\n")
    for name in ("empty", "short", "nowhere"):
        assert main(["plot", "run", name, "--out", "a.png"]) == 1
        assert f"{name}' has no figures" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert not (tmp_path / "a.png").exists()
    assert main(["plot", "run", "--x", "minutes"]) == 0 and (tmp_path / "curves.png").is_file()
