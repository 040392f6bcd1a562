"""Figures: what is drawn is read back out of the SVG."""

import math
import re
import xml.etree.ElementTree as ET
from io import BytesIO
from threading import Thread

import numpy as np
import pytest
from metrics import records

from ggtune.report import plots
from ggtune.report.curves import Points, axis_of, points, thinned

pytest.importorskip("matplotlib")
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_a_thinned_curve_keeps_every_extreme_and_its_ends():
    values = np.sin(np.arange(200_000) / 7)
    values[123_456], values[77] = 50.0, -50.0
    curve = Points(np.arange(200_000.0), values)
    thin = thinned(curve, 100)
    assert len(thin) <= 400
    assert list(thin.x) == sorted(set(thin.x))
    assert (thin.x[0], thin.x[-1]) == (0, 199_999)
    for at in (123_456, 77):
        assert values[at] == thin.y[thin.x == at]
    # each stretch's own highest, not only the curve's
    highest = [values[i : i + 2000].max() for i in range(0, 200_000, 2000)]
    assert set(highest) <= set(thin.y)


def test_missing_values_are_gaps():
    curve = Points(np.arange(1000.0), np.r_[np.ones(400), np.full(300, np.nan), np.ones(300)])
    thin = thinned(curve, 10)
    assert np.isnan(thin.y).any()
    assert thin.x[np.isnan(thin.y)].min() >= 400
    short = points([{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": True}], "loss")
    assert np.isnan(short.y).tolist() == [False, True, True]
    assert len(points([{"step": 1, "loss": math.inf}], "loss").finite) == 0


def test_a_spike_does_not_flatten_the_rest_and_is_told():
    made = records(300, spike={120})
    axis = axis_of([points(made, "loss")])
    assert axis.clipped
    assert 3 < axis.high < 8
    assert [*axis.above(points(made, "loss")).x] == [120]
    described = plots.loss_figure({"": made}).description
    assert "1 value lies above the axis" in described
    assert f"the highest is {made[119]['loss']:.4g} at step 120" in described


def test_the_end_of_a_diverged_run_is_in_sight():
    made = records(400, diverged_after=393)
    assert axis_of([points(made, "loss")]).high >= made[-1]["loss"]


@pytest.mark.parametrize(
    ("values", "log"), [([5.0, 1.0, 0.01], True), ([5.0, 1.0, 0.5], False), ([0.0, 0.0], False), ([3.0], False)]
)
def test_a_wide_range_gets_a_logarithmic_axis(values, log):
    axis = axis_of([Points(np.arange(float(len(values))), np.array(values))])
    assert axis.log is log
    assert axis.low < min(values) or log
    assert axis.high > max(values)


def test_the_loss_figure_says_what_happened():
    made = records(300, dropped={60, 61})
    plot = plots.loss_figure({"": made})
    assert "300 steps" in plot.description
    assert "2 steps were dropped" in plot.description
    losses = [r["held_out_loss"] for r in made if "held_out_loss" in r]
    assert f"measured 6 times: {losses[0]:.4g} first, {min(losses):.4g} at its best" in plot.description
    svg = plot.svg()
    root = ET.fromstring(svg)
    assert root.attrib["role"] == "img"
    labelled = root.attrib["aria-labelledby"].split()
    by_id = {element.get("id"): element for element in root.iter()}
    assert [by_id[name].text for name in labelled] == [plot.title, plot.description]
    assert {"smoothed", "held-out", "best held-out", "step"} <= set(texts(svg))


def test_what_was_not_recorded_is_not_drawn():
    keys = [plot.key for plot in plots.all_figures({"": records(60)})]
    assert keys == ["loss", "score-1", "rate", "gradient", "speed", "memory"]
    assert [plot.key for plot in plots.all_figures({"": records(60, old=True)})] == [
        "loss",
        "rate",
        "gradient",
        "speed",
    ]
    assert plots.all_figures({"": []}) == []
    assert "Held-out" not in plots.loss_figure({"": records(60, held_out=False)}).description


def test_runs_over_each_other_are_named_and_by_epoch_where_their_steps_differ():
    same = plots.loss_figure({"first": records(100), "second": records(100, seed=1)})
    assert {"first", "second", "step"} <= set(texts(same.svg()))
    other = plots.loss_figure({"first": records(100), "second": records(50, per_epoch=25)})
    assert "epoch" in texts(other.svg())


def test_a_hostile_name_stays_text():
    name = "_<script>alert(1)</script>]]>\u202e$x_1$\0"
    svg = plots.rate_figure({name: records(20), "b": records(20)}).svg()
    assert "<script" not in svg
    assert any("<script>alert(1)</script>]]>⟨U+202E⟩$x_1$⟨U+0000⟩" in text for text in texts(svg))


def test_figures_in_one_page_share_no_id_and_follow_its_colours():
    ids, referred = [], []
    for name in ("a", "b"):
        svg = plots.loss_figure({"": records(30, spike={20})}).svg(name=name)
        ids += re.findall(r'\bid="([^"]+)"', svg)
        referred += re.findall(r'(?:url\(#|href="#)([^")]+)', svg)
        assert "<style" not in svg
        assert "xmlns:ns" not in svg
        own = set(re.findall(r"(?<!, )#[0-9a-f]{6}\b", svg))
        assert own <= {"#000000", "#ffffff"}
    assert len(ids) == len(set(ids))
    assert set(referred) <= set(ids)
    assert "var(--plot-1, #0b62b0)" in svg
    for css in (plots.LIGHT_CSS, plots.DARK_CSS):
        assert css.count("--plot-") == 10


def test_a_long_run_is_drawn_small():
    made = records(200_000, per_epoch=20_000, spike={100_000})
    assert len(plots.loss_figure({"": made}).svg()) < 150_000


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_run_of_few_steps_has_dots(n):
    svg = plots.loss_figure({"": records(n, per_epoch=1)}).svg()
    assert "<use" in svg


def test_a_fitted_curve_is_drawn_with_its_range():
    class Estimate:
        value, low, high = 1.0, 0.9, 1.1

    class Fit:
        def predict(self, step):
            return Estimate

    made = {"": records(100, per_epoch=10)}
    assert any("fitted" in text for text in texts(plots.loss_figure(made, fit=Fit(), fit_to=150).svg()))
    assert not any("fitted" in text for text in texts(plots.loss_figure(made).svg()))


def test_a_png_is_white_and_has_twice_the_pixels():
    image = pytest.importorskip("matplotlib.image")
    data = plots.loss_figure({"": records(30)}).png(300, 200)
    pixels = image.imread(BytesIO(data), format="png")
    assert pixels.shape[:2] == (400, 600)
    assert pixels[0, 0, :3].tolist() == [1, 1, 1]
    assert b"ggtune report" in data[:200]


def test_figures_are_drawn_by_several_threads_and_settings_stay():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    made = {"": records(50)}
    expected = plots.rate_figure(made).svg()
    found = []
    threads = [Thread(target=lambda: found.append(plots.rate_figure(made).svg())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    assert dict(mpl.rcParams) == before
