from itertools import pairwise

import pyarrow as pa
import pytest
from planted import bent, grid
from test_verdict import broken, only, replaced, spoil

from analysis.report import answer, conclusion, heat_map, summary
from analysis.verdict import judge
from trainables.trial import AGAIN


def said(trials, metric="lambda_max", margin=0.1) -> str:
    return " ".join(conclusion([only(trials, metric, margin)]).split())


def test_equivalent_in_words():
    text = said(grid(bent, label_noise=0.25))
    assert text.startswith("lambda_max depends on lr / batch size alone within a factor 1.1 (20 contrasts, 8 seeds).")
    assert "Invariance holds up to lr 0.512 (the highest tried)." in text
    assert "lr ∝ batch size^1.00 (95% set 0.9" in text
    assert "Note" not in text


def test_different_in_words():
    text = said(grid(broken))
    assert text.startswith("lambda_max is NOT the same at equal lr / batch size within a factor 1.1")
    assert "The largest contrast is ×0.343 (90% interval ×0.335 to ×0.350)" in text
    assert "from batch size 8 to 128 at ratio 0.004 (lr 0.512)." in text
    assert "Invariance holds up to lr 0.064 and is broken from lr 0.128." in text


def test_inconclusive_in_words():
    verdict = only(grid(bent, seeds=4, sd=0.1))
    text = said(grid(bent, seeds=4, sd=0.1))
    assert text.startswith("lambda_max: undecided whether lr / batch size alone matters within a factor 1.1")
    assert f"Note: about {verdict.seeds_needed} seeds per cell would decide it" in text


def test_controls_in_words():
    noise = {2.5e-4: 0.0, 5e-4: 0.01, 1e-3: 0.02, 2e-3: 0.4, 4e-3: -0.8}
    control = grid(
        lambda lr, b: bent(lr, b) - noise[float(f"{lr / b:.3g}")],
        batch_sizes=[8],
        rng=1,
        sampler="full",
        order_seed=None,
        seed_sd=0,
    )
    again = grid(bent, batch_sizes=[8], rng=2, sampler="stream", order_seed=0, seed_sd=0)
    order = pa.array(again["seed"].to_numpy() ^ AGAIN)
    again = again.set_column(again.column_names.index("order_seed"), "order_seed", order)
    trials = pa.concat_tables(
        [grid(bent, sampler="stream", order_seed=None, seed_sd=0), control, again], promote_options="permissive"
    )
    text = said(trials)
    assert "It is informative about noise at ratio 0.002 (×1.4" in text or "ratio 0.002 (×1.5" in text
    assert ", 0.004 (×0.4" in text
    assert "At ratio 0.00025, 0.0005, 0.001 it is explained by training time: noise does less than the margin." in text
    assert "Equal trials with another order of examples end ×1." in text
    assert " apart (40 pairs): the largest contrast is " in text
    assert heat_map(trials, "lambda_max") == heat_map(grid(bent, seed_sd=0), "lambda_max")


def test_differences_on_the_absolute_scale_have_a_sign():
    text = said(grid(lambda lr, b: 0.1 * (b > 8), metric="test_accuracy", seed_sd=0), "test_accuracy", 0.01)
    assert "within ±0.01" in text
    assert "The largest contrast is +0.1" in text


def test_every_group_and_metric_has_its_paragraph():
    trials = pa.concat_tables([grid(bent, label_noise=0.25), grid(broken, label_noise=0.0, seeds=1)])
    first, second = conclusion(judge(trials, {"lambda_max": 0.1})).split("\n\n")
    assert first.startswith("lambda_max (label_noise 0.0): undecided")
    assert "(20 contrasts, 1 seed)" in first
    assert second.startswith("lambda_max (label_noise 0.25) depends")
    assert conclusion([]).startswith("No trial has ended yet")


def test_summary_is_one_line_each():
    trials = pa.concat_tables([grid(bent, label_noise=0.25), grid(broken, label_noise=0.0)])
    assert summary(judge(trials, {"lambda_max": 0.1})).splitlines() == [
        "lambda_max  label_noise 0.0   DIFFERENT   holds up to lr 0.064 and is broken from lr 0.128",
        "lambda_max  label_noise 0.25  EQUIVALENT  holds up to lr 0.512",
    ]
    assert summary([only(grid(bent, seeds=1))]) == "lambda_max  INCONCLUSIVE  about 4 seeds would decide"


def test_wrapped_to_the_width():
    text = conclusion([only(grid(broken))], width=50)
    assert max(map(len, text.splitlines())) <= 50


def test_heat_map_by_hand():
    trials = grid(
        lambda lr, b: 3.0 if lr < 0.1 else 1.0, seeds=2, sd=0, seed_sd=0, ratios=[0.01, 0.02], batch_sizes=[4, 8]
    )
    assert heat_map(trials, "lambda_max") == (
        "lambda_max: geometric mean over 2 seeds; lr across, batch size down\n"
        "   0.04  0.08  0.16\n"
        "4 █20.1 █20.1\n"
        "8       █20.1  2.72"
    )


def test_iso_ratio_lines_are_diagonals():
    *_, first, second, third, fourth, fifth = heat_map(grid(bent, seed_sd=0), "lambda_max").splitlines()
    starts = [len(line) - len(line[3:].lstrip()) for line in (first, second, third, fourth, fifth)]
    assert len({b - a for a, b in pairwise(starts)}) == 1
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("width", [80, 50, 24, 10])
def test_heat_map_fits_the_width(width):
    text = heat_map(grid(broken, label_noise=0.25), "lambda_max", width)
    assert max(map(len, text.splitlines()[3:])) <= width
    for lr in ["0.002", "0.016", "0.512"]:
        assert lr in text
    assert text.count("128") >= 2


def test_diverged_and_unmeasured_cells_are_marked():
    trials = spoil(grid(bent, seeds=2), [48, 49, 38], status="diverged", lambda_max=None)
    text = heat_map(spoil(trials, [28, 29], lambda_max=None), "lambda_max")
    last = text.splitlines()[-2].split()
    assert last[-1] == "div"
    assert last[-2].endswith("!")
    assert last[-3] == "-"
    assert text.splitlines()[-1] == "! some trials diverged; div all of them"


def test_heat_map_of_nothing():
    assert heat_map(grid(bent).slice(0, 0), "lambda_max") == ""
    alone = replaced(grid(bent), "lambda_max", [None] * 200)
    assert " -" in heat_map(alone, "lambda_max")


def test_the_answer_names_what_is_equivalent_and_what_is_different():
    verdicts = [only(grid(bent)), only(grid(broken))]
    assert [v.verdict for v in verdicts] == ["equivalent", "different"]
    same, other = answer(verdicts, width=200)
    assert same == "Within the margin, only lr / batch size matters for lambda_max."
    assert other == "More than lr / batch size matters, beyond the frontier above, for lambda_max."
