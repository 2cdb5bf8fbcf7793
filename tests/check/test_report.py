"""rlloss check, what it says: values and kinds, the report, the assertion for test suites, the command."""

import json

import pytest
import torch

from rlloss.check import assert_same_gradient, compare
from rlloss.check.text import full_text, text
from rlloss.cli import main
from rlloss.errors import LossError
from rlloss.losses import LOSSES, grpo
from rlloss.verdicts import Verdict

DIFFERENT, EQUAL, IDENTICAL = Verdict.DIFFERENT, Verdict.EQUAL, Verdict.IDENTICAL

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


# ---------------------------------------------------------------------------------------- what differs besides


@pytest.mark.slow
def test_values_kinds_and_the_first_minibatch():
    result = compare("ppo_clip", "reinforce", dtypes=(F64,)).values
    assert result.constant is None
    assert result.true_loss == (True, False)
    assert abs(result.first_minibatch[0]) < 1e-12, "why is my loss 0?"
    assert abs(result.first_minibatch[1]) > 1e-3
    assert result.gradient_norm[0] == result.gradient_norm[1] > 0.01
    assert compare("ppo_clip", "ppo_clip_offset", dtypes=(F64,)).values.constant == pytest.approx(5)
    assert compare("ppo_clip", "ppo_max", dtypes=(F64,)).values.constant == 0
    assert compare("ppo_unclipped", "spo", dtypes=(F64,)).values.true_loss == (True, True)
    assert compare("on_policy_ratio", "a2c", dtypes=(F64,)).values.true_loss == (False, True)
    assert compare("grpo", "gspo", dtypes=(F64,)).values.true_loss == (True, True)


def test_where_a_gradient_is_not_finite():
    result = compare("ppo_clip", "reinforce", dtypes=(F32,))
    assert result.not_finite == ("at ratio inf, A = 1 the gradient is nan for ppo_clip and 0 for reinforce (float32)",)
    assert compare("ppo_clip", "ppo_max", dtypes=(F32,)).not_finite == (), "both are NaN there"


@pytest.mark.slow
def test_the_example_is_small_and_readable():
    e = compare("ppo_clip", "ppo_unclipped", dtypes=(F64,)).example
    assert (e.n, round(e.ratio, 12), e.advantage, e.logp) == (1, 2, 1, -2)
    assert e.gradients == (0, pytest.approx(-2))
    assert compare("ppo_clip", "dual_clip", dtypes=(F64,)).example.ratio == pytest.approx(4)
    textbook = compare("ppo_clip", "reinforce_textbook", dtypes=(F32,)).example
    assert textbook.n in (3, 5, 7), "an N whose 1/N is not a power of two"
    assert textbook.why == "rounding"
    edge = compare("ppo_clip", "ppo_masked", dtypes=(F64,)).example
    assert (edge.why, edge.n) == ("edge", 1)
    assert edge.gradients[0] != 0 == edge.gradients[1]
    sequences = compare("grpo", "dr_grpo", dtypes=(F64,)).example
    assert sequences.sequences == ((1.0,), (1.0,))
    assert sequences.gradients == (-0.5, -0.25), "1 / 2 sequences; 1 / (2 sequences x 2 columns)"
    assert compare("ppo_clip", "reinforce", dtypes=(F64,)).example is None


def test_the_report_says_what_was_tried():
    said = text(compare("ppo_clip", "cispo", clip_coef=0.25, dtypes=(F32,), seed=3))
    assert said.startswith("ppo_clip and cispo: DIFFERENT")
    assert "float32; clip_coef 0.25; seed 3" in said
    assert "A > 0: ratio < 0.75 or ratio > 1.25" in said
    assert all(len(line) <= 118 for line in said.splitlines())


@pytest.mark.parametrize(("a", "b"), [("ppo_clip", "cispo"), ("ppo_clip", "klip"), ("grpo", "gspo")])
def test_the_report_is_short_and_the_whole_one_says_more(a, b):
    c = compare(a, b)
    short, whole = text(c).splitlines(), full_text(c).splitlines()
    assert short[:6] == whole[:6], "the verdict and the table"
    assert [line.startswith("tried") for line in short] == [False] * (len(short) - 1) + [True], "one line, the last"
    assert "float64, float32, bfloat16; clip_coef 0.2; seed 0" in short[-1]
    assert len(short[-1]) <= 118
    assert len(whole) >= len(short) + 3
    assert "Hypothesis" in "".join(whole[-4:])
    for label in ("not bitwise", "subnormal"):
        assert not any(line.startswith(label) for line in short)
    assert any(line.startswith("not bitwise") for line in whole) == (c.verdict == "EQUAL")
    for label in ("differ at", "example", "values", "kind", "edges", "rounding", "not finite"):
        assert any(line.startswith(label) for line in short) == any(line.startswith(label) for line in whole), label


@pytest.mark.slow
def test_verbose_prints_more_and_the_file_is_the_whole_report(tmp_path, capsys):
    reports = {}
    for flag in ("", "-v", "--verbose"):
        assert main(["check", "ppo_clip", "cispo", "--dtype", "float32", "-o", str(tmp_path), *flag.split()]) == 1
        reports[flag] = capsys.readouterr().out
        assert (tmp_path / "ppo_clip__cispo.txt").read_text().startswith(reports[flag][:200])
    assert len(reports["--verbose"].splitlines()) >= len(reports[""].splitlines()) + 3
    assert reports["-v"] == reports["--verbose"] == (tmp_path / "ppo_clip__cispo.txt").read_text()


# ------------------------------------------------------------------------------- as a library, and as a command


def test_assertion_for_other_peoples_test_suites():
    assert_same_gradient("ppo_clip", "reinforce", bitwise=True, dtypes=(F32,))
    assert_same_gradient("ppo_clip", "reinforce_textbook", dtypes=(F32,))
    with pytest.raises(AssertionError, match="EQUAL"):
        assert_same_gradient("ppo_clip", "reinforce_textbook", bitwise=True, dtypes=(F32,))
    with pytest.raises(AssertionError, match=r"(?s)DIFFERENT.*ratio > 1.2.*example"):
        assert_same_gradient("ppo_clip", LOSSES["ppo_unclipped"], dtypes=(F32,))


def test_sequence_losses_are_compared_with_their_kind_only():
    with pytest.raises(LossError, match=r"grpo is a sequence loss.*ppo_clip is per sample"):
        compare("ppo_clip", grpo)
    with pytest.raises(LossError, match=r"clip-coef=1\.5"):
        compare("ppo_clip", "cispo", clip_coef=1.5)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ppo_clip", "reinforce"], 0),
        pytest.param(["ppo_clip", "reinforce_textbook"], 0, marks=pytest.mark.slow),
        (["ppo_clip", "reinforce_textbook", "--bitwise"], 1),
        (["ppo_clip", "cispo"], 1),
        pytest.param(["cispo"], 1, marks=pytest.mark.slow),
        pytest.param(["ppo_unclipped"], 0, marks=pytest.mark.slow),
        pytest.param(["ppo_unclipped", "reinforce_unclipped", "cispo"], 1, marks=pytest.mark.slow),
        (["nothing", "cispo"], 2),
        (["ppo_clip", "cispo", "--clip-coef", "0"], 2),
    ],
)
def test_exit_codes(arguments, code, capsys):
    assert main(["check", *arguments, "--dtype", "float32"]) == code
    assert len(capsys.readouterr().err.splitlines()) == (code == 2)


@pytest.mark.slow
def test_json_holds_the_whole_comparison(capsys):
    assert main(["check", "ppo_clip", "dual_clip", "--json", "--dtype", "float64"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "DIFFERENT"
    assert document["regions"] == ["A < 0: ratio > 3"]
    assert document["example"]["gradients"][1] == 0
    assert document["dtypes"] == ["float64"]
    assert main(["check", "cispo", "--json", "--dtype", "float64"]) == 1
    assert len(json.loads(capsys.readouterr().out)["pairs"]) == len(LOSSES) - 1


@pytest.mark.slow
def test_pictures_and_tables_are_written_and_the_same_when_made_twice(tmp_path, capsys):
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        options = ["--dtype", "float32", "-o", str(folder)]
        assert main(["check", "ppo_clip", "cispo", *options]) == 1
        assert main(["check", "ppo_clip", "cispo", "spo", *options]) == 1
        assert main(["check", "spo", *options]) == 1
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0] == made[1]
    figures = {
        f"{stem}.{suffix}" for stem in ("ppo_clip__cispo", "equivalence_matrix") for suffix in ("pdf", "png", "svg")
    }
    tables = {"ppo_clip__cispo.txt", "equivalence_matrix.csv", "equivalence_classes.csv", "against_zoo.csv"}
    assert set(made[0]) == figures | tables
    (tmp_path / "file").write_text("mine")
    assert main(["check", "ppo_clip", "cispo", "-o", str(tmp_path / "file")]) == 2
    assert (tmp_path / "file").read_text() == "mine"
