"""The READMEs say what the code and the reference results say, and lead somewhere."""

import re
import shlex
import subprocess
import sys
from urllib.parse import unquote

import pytest

from rlloss.claims import readme
from rlloss.cli import main
from rlloss.config.compose import known_keys
from rlloss.config.metrics import METRICS
from rlloss.errors import ConfigError
from tests.helpers import ROOT, code_blocks

LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard", "*README.md"], cwd=ROOT, capture_output=True, text=True, check=True
)
READMES = sorted(LISTED.stdout.split())
COMMANDS = [(name, match) for name in READMES for match in readme.COMMAND.finditer((ROOT / name).read_text())]
CHECKS = [match for _, match in COMMANDS if match["arguments"].startswith("check ")]
TOUR = [match for _, match in COMMANDS if not match["arguments"].startswith("check ")]
QUICK = ("check ppo_clip reinforce", "check ppo_clip tests/examples/my_losses.py:detached_ratio")


def test_these_are_the_readmes():
    packages = ("check", "graph", "train", "watch")
    folders = ("", "configs/", "experiments/", "results/", "tests/", *(f"rlloss/{name}/" for name in packages))
    assert [name.removesuffix("README.md") for name in READMES] == sorted(
        folders, key=lambda folder: folder + "README.md"
    )
    assert "-m rlloss.claims.readme $$(git ls-files '*README.md')" in (ROOT / "Makefile").read_text()


def test_the_front_door_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


@pytest.mark.parametrize("name", READMES)
def test_generated_tables_are_those_that_make_readme_writes_now(name, tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / name).read_text())
    readme.update_readme(copy, ROOT / "results/reference")
    assert copy.read_text() == (ROOT / name).read_text()
    for match in readme.TABLE.finditer(copy.read_text()):
        assert re.search(r"^\| :?---.*\n\| ", match[0], re.MULTILINE), f"an empty table: {match['name']}"


def test_a_stale_table_is_renewed_and_a_missing_one_is_an_error(tmp_path):
    copy = tmp_path / "README.md"
    fresh = (ROOT / "results/README.md").read_text()
    stale = fresh.replace("| CartPole-v1 | adam | 128 | 2 of 2 |", "| CartPole-v1 | adam | 128 | 1 of 2 |")
    assert stale != fresh
    copy.write_text(stale)
    readme.update_readme(copy, ROOT / "results/reference")
    assert copy.read_text() == fresh
    copy.write_text("<!-- nothing.csv -->old<!-- end -->")
    with pytest.raises(ConfigError, match=r"nothing\.csv is missing"):
        readme.update_readme(copy, ROOT / "results/reference")


def test_markers_choose_columns_and_lines(tmp_path):
    copy, reference = tmp_path / "README.md", tmp_path
    (tmp_path / "t.csv").write_text('"a, b",c,d\n1,2,3\n4,5,6\n')
    copy.write_text("<!-- t.csv: a, b; d | head -3 -->old<!-- end -->")
    readme.update_readme(copy, reference)
    table = "| a, b | d |\n| ---: | ---: |\n| 1 | 3 |"
    assert copy.read_text() == f"<!-- t.csv: a, b; d | head -3 -->\n\n{table}\n\n<!-- end -->"
    assert "```console\n$ rlloss x | head -1\none\n```" in readme.block("rlloss x", "head -1", "one\ntwo\n")


def test_no_marker_is_misspelt_and_each_has_its_end():
    for name in READMES:
        text = (ROOT / name).read_text()
        comments = re.findall(r"<!--.*?-->", text, re.DOTALL)
        generated = [*readme.TABLE.finditer(text), *readme.COMMAND.finditer(text)]
        assert len(comments) == 2 * len(generated), name


def test_every_key_and_metric_is_explained():
    keys = set(re.findall(r"^\| `([\w.]+)`.* \|", (ROOT / "configs/README.md").read_text(), re.MULTILINE))
    assert {key for key in known_keys() if not key.endswith(".name")} <= keys
    metrics = re.findall(r"^\| `(\w+)` \|", (ROOT / "rlloss/train/README.md").read_text(), re.MULTILINE)
    assert [name for name in metrics if name in METRICS] == list(METRICS)
    assert "minibatches per epoch; must divide the batch" in readme.keys_table(ROOT), "the schema's comment"


# ------------------------------------------------------------------------------------------------ what they lead to


def anchors(text):
    """The fragments of a page's headings, as hosts make them: lower case, no punctuation, hyphens for spaces."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", READMES)
def test_every_link_and_picture_leads_somewhere(name):
    here = ROOT / name
    links = re.findall(r"\]\(([^)\s]+)\)", here.read_text())
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, fragment = unquote(link).partition("#")
        target = (here.parent / path) if path else here
        assert target.exists(), link
        assert target.resolve().is_relative_to(ROOT), link
        assert not fragment or fragment in anchors(target.read_text()), link


def test_every_file_that_the_readmes_name_exists():
    """Paths in code font, below the folders of the project; what is made by a command is not in git."""
    for name in READMES:
        for path in re.findall(
            r"`((?:rlloss|tests|configs|experiments|results/reference)/[\w./-]+)`", (ROOT / name).read_text()
        ):
            assert "NAME" in path or (ROOT / path).exists(), f"{name}: {path}"


# -------------------------------------------------------------------------------------------- the commands they show


def verdict(output):
    """The first line and where the losses differ. The rest holds numbers that another CPU may round differently."""
    lines = [line for line in output.splitlines() if line and "rlloss check" not in line and line[0] not in "`<"]
    kept = [line for line in lines if re.match(r"(differ at|factor|on-policy|off-policy|\w+ +\w+ +[A-Z]{5})", line)]
    return lines[0], [re.sub(r"[\d,]+ +\d.*|\d+ .*", "", line) for line in kept]


def printed_now(match, capsys):
    main(shlex.split(match["arguments"]))
    printed = capsys.readouterr()
    return readme.filtered(printed.out or printed.err, match["filter"])


@pytest.mark.parametrize("arguments", QUICK)
def test_two_commands_still_give_those_verdicts(arguments, capsys):
    match = next(match for match in CHECKS if match["arguments"] == arguments)
    assert verdict(printed_now(match, capsys)) == verdict(match["body"])


@pytest.mark.slow
@pytest.mark.parametrize("match", CHECKS, ids=lambda match: match["arguments"])
def test_every_check_still_gives_that_verdict(match, capsys):
    assert verdict(printed_now(match, capsys)) == verdict(match["body"])


@pytest.mark.slow
def test_the_tour_of_the_front_door_runs(tmp_path, monkeypatch, capsys):
    """Its other commands, one after the other in an empty folder, print what is shown but for the numbers."""
    monkeypatch.chdir(tmp_path)
    assert [match["arguments"].split()[0] for match in TOUR] == [
        "train",
        "verify",
        "tests/examples/watched.py",
        "bisect",
    ]

    def words(text):
        return re.findall(r"[a-zA-Z_]{4,}", re.sub(r"\b[0-9a-f]{12}\b", "", text))

    for match in TOUR:
        arguments = shlex.split(match["arguments"])
        if match["program"] == "python":
            command = [sys.executable, ROOT / arguments[0], *arguments[1:]]
            print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="")
        else:
            assert main(arguments) == (arguments[0] == "bisect"), arguments
        shown = match["body"].partition("\n$ ")[2].partition("\n")[2]
        assert words(readme.filtered(capsys.readouterr().out, match["filter"])) == words(shown)


def test_a_long_output_is_folded_below_its_verdict_and_its_example():
    report = "a and b: DIFFERENT (why)\n" + "x\n" * 8 + "example      ratio 2\n             different: 1, 2\n"
    assert "rlloss c d</code><br>a and b: DIFFERENT (why)<br>ratio 2; different: 1, 2</summary>" in readme.block(
        "rlloss c d", None, report
    )
    assert "<code>rlloss c</code></summary>" in readme.block("rlloss c", None, "head  er\n" * 9)
    assert "<details>" not in readme.block("rlloss c", None, "a: EQUAL (why)\n" * 8)


def test_the_example_of_an_assertion_runs(monkeypatch):
    (code,) = [code for code in code_blocks("rlloss/check/README.md") if "assert_same_gradient" in code]
    monkeypatch.syspath_prepend(".")
    names, others = {}, {}
    exec(code, names)
    names["test_my_loss_is_ppo"]()
    exec(code.replace('"ppo_clip"', '"cispo"'), others)
    with pytest.raises(AssertionError, match="DIFFERENT") as caught:
        others["test_my_loss_is_ppo"]()
    assert str(caught.value).count("tried") == 1, "the short report"
    assert "Hypothesis" not in str(caught.value)
