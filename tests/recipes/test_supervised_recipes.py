import gzip
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from recipes import blueprint, class_config, conversation_files, custom_dataset, hf_dataset, streaming

ROOT = Path(__file__).parents[2]
DATA = ROOT / "recipes" / "data" / "pig_latin_test.jsonl"


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [row["loss"] for row in rows(folder) if "loss" in row]


RECIPES = {
    "class_config": lambda **options: class_config.main(
        class_config.CLIConfig(model_name="tiny", file_path=str(DATA), batch_size=4, test_size=4, **options)
    ),
    "hf_dataset": lambda **options: hf_dataset.main(
        hf_dataset.CLIConfig(model_name="tiny", dataset=str(DATA), max_train_samples=40, batch_size=4, **options)
    ),
    "conversation_files": lambda **options: conversation_files.main(
        conversation_files.CLIConfig(model_name="tiny", file_path=str(DATA), batch_size=4, **options)
    ),
    "streaming": lambda **options: streaming.main(
        streaming.CLIConfig(model_name="tiny", dataset=str(DATA), max_prompts=40, batch_size=4, **options)
    ),
    "custom_dataset": lambda **options: custom_dataset.main(
        custom_dataset.CustomDatasetConfig(model_name="tiny", rows=40, batch_size=4, **options)
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_tests_and_resumes_where_it_stood(name):
    RECIPES[name](log_path="run", max_steps=2)
    RECIPES[name](log_path="run", max_steps=4)
    steps = [row["step"] for row in rows("run") if "loss" in row]
    assert steps == [0, 1, 2, 3]
    assert any("test/nll" in row for row in rows("run"))
    assert (Path("run") / "summary.json").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_of_a_recipe_prints_its_size_and_writes_nothing(name, capsys):
    RECIPES[name](log_path="run", max_steps=2, dry_run=True)
    printed = capsys.readouterr().out
    assert re.search(r"^steps +2 \(", printed, re.MULTILINE)
    assert re.search(r"^evaluations +2, each of [\d,]+ tokens$", printed, re.MULTILINE)
    assert "memory of the embedded engine: not known: no sizes are listed for the built-in model 'tiny'" in printed
    assert not Path("run").exists()


def test_the_blueprint_trains_with_overrides_from_the_command_line():
    config = blueprint.build_config_blueprint().make_from_argv(
        ["model_name=tiny", "log_path=run", "max_steps=2", "batch_size=4", "--dataset_builder.test_size=8"],
        allow_hyphens=True,
    )
    assert (config.lr_schedule, config.dataset_builder.test_size) == ("cosine", 8)
    blueprint.main(config)
    assert len(losses("run")) == 2


def test_two_sources_are_mixed_and_broken_rows_are_skipped_and_said(capsys):
    alpaca = [{"instruction": f"What is {i}?", "output": str(i)} for i in range(30)]
    lines = [json.dumps(row) for row in alpaca]
    lines[3] = "broken"
    with gzip.open("other.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    RECIPES["conversation_files"](
        other_path="other.jsonl.gz", other_adapter="alpaca", share=0.5, log_path="run", max_steps=2
    )
    said = capsys.readouterr().err
    assert "1 of 30 rows skipped (first: other.jsonl.gz:4)" in said
    assert "50.0% main" in said
    assert len(losses("run")) == 2


CALL = "\n    run_from_command_line(main"
PROGRAMS = [path.stem for path in sorted((ROOT / "recipes").glob("*.py")) if CALL in path.read_text()]


def run_recipe(name, *arguments):
    """`python -m recipes.name arguments` in this process, up to the end that it is expected to come to at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.delenv("PYTEST_VERSION", raising=False)  # under which chz raises instead of ending the program
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"recipes.{name}", run_name="__main__", alter_sys=True)
    return ended.value


def options_of(name, capsys):
    assert run_recipe(name, "--help").code == 0
    _, _, listed = capsys.readouterr().out.partition("Arguments:\n")
    return [line.split() for line in listed.splitlines()]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_each_option_with_its_default_and_its_sentence(name, capsys):
    options = options_of(name, capsys)
    assert len(options) >= 2
    for words in options:
        assert "<default>" not in words, f"the default of {words[0]} is not shown"
        assert name == "blueprint" or "(default)" in words
        assert words[-1].endswith("."), f"{words[0]} has no sentence"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_misspelt_option_names_the_nearest(name, capsys):
    longest = max((words[0] for words in options_of(name, capsys)), key=len)
    assert run_recipe(name, f"{longest[:3]}{longest[4:]}=1").code == 1
    assert f"Did you mean '{longest}'" in capsys.readouterr().err


def test_the_table_lists_every_recipe_and_nothing_else():
    table = (ROOT / "recipes" / "README.md").read_text()
    written = {path.stem for path in (ROOT / "recipes").glob("*.py") if not path.name.startswith("make_")}
    assert written <= set(re.findall(r"\((\w+)\.py\)", table))
    assert set(re.findall(r"python -m recipes\.(\w+)`", table)) <= written
