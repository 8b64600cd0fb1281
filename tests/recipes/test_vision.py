import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from recipes import make_images, vision_captioning, vision_classifier, vision_training, vision_vqa

SMALLEST = {"steps": 2, "batch_size": 4, "test_size": 4, "eval_every": 1, "run": "run"}


@pytest.fixture
def drawn():
    make_images.main(make_images.Config(folder="pictures", train=12, test=6))
    return Path("pictures")


def rows(folder="run"):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def test_pictures_are_real_files_of_both_kinds_and_the_same_every_time(drawn):
    make_images.main(make_images.Config(folder="again", train=12, test=6))
    files = sorted(path.relative_to(drawn) for path in drawn.rglob("*") if path.is_file())
    assert len(files) == 3 * (12 + 6 + 1)
    for file in files:
        assert (drawn / file).read_bytes() == (Path("again") / file).read_bytes()
        if file.suffix in (".png", ".jpg"):
            picture = Image.open(drawn / file)
            assert (picture.format, picture.mode, picture.size) == (
                {".png": "PNG", ".jpg": "JPEG"}[file.suffix],
                "RGB",
                (64, 64),
            )
    assert {file.suffix for file in files} == {".png", ".jpg", ".csv", ".jsonl"}


def test_no_test_picture_is_a_training_picture(drawn):
    for kind in ("shapes", "digits", "charts"):
        train = {path.read_bytes() for path in (drawn / kind / "train").iterdir()}
        assert len(train) == 12
        assert train.isdisjoint({path.read_bytes() for path in (drawn / kind / "test").iterdir()})


RECIPES = {
    "vision_classifier": lambda **options: vision_classifier.main(
        vision_classifier.Config(folder="pictures/digits", **options)
    ),
    "vision_captioning": lambda **options: vision_captioning.main(
        vision_captioning.Config(folder="pictures/shapes", **options)
    ),
    "vision_vqa": lambda **options: vision_vqa.main(
        vision_vqa.Config(folder="pictures/charts", per_conversation=2, **options)
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_reports_chance_and_draws_its_predictions(drawn, name, capsys):
    found = RECIPES[name](**SMALLEST)
    assert 0 <= found <= 1
    output = capsys.readouterr().out
    assert "chance" in output
    assert "on unseen images" in output
    assert [row["step"] for row in rows() if "loss" in row] == [0, 1]
    assert any("test/accuracy" in row for row in rows())
    assert Image.open("run/predictions.png").size[0] > 100
    assert Path("run/metrics.png").exists()


def test_few_shots_are_that_many_of_each_class(drawn):
    labelled = vision_classifier.read_labels(drawn / "shapes", seed=0)["train"]
    kept = [label for _, label in vision_classifier.few(labelled, 1)]
    assert sorted(kept) == sorted(make_images.SHAPES)
    assert vision_classifier.few(labelled, 0) == labelled


def test_labels_without_splits_are_split_once_and_for_all(drawn):
    file = drawn / "shapes" / "labels.csv"
    with file.open(newline="") as opened:
        read = list(csv.DictReader(opened))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, ["file", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(read)
    splits = vision_classifier.read_labels(drawn / "shapes", seed=0)
    assert splits == vision_classifier.read_labels(drawn / "shapes", seed=0)
    assert {split: len(rows) for split, rows in splits.items()} == {"test": 3, "train": 15}
    assert not {f for f, _ in splits["test"]} & {f for f, _ in splits["train"]}


def test_chance_is_that_of_the_commonest_answer_to_each_question():
    def turn(question, answer):
        return [vision_training.ask(b"", question), vision_training.reply(answer)]

    train = [turn("a?", "x"), turn("a?", "x"), turn("a?", "y"), turn("b?", "z")]
    items = vision_training.items_of([turn("a?", "x"), turn("a?", "y"), turn("b?", "z"), turn("b?", "x")])
    assert vision_training.chance(train, items) == 0.5


def test_a_multi_turn_item_has_its_history_and_its_picture(drawn):
    row = json.loads((drawn / "charts" / "questions.jsonl").read_text().splitlines()[0])
    items = vision_training.items_of([vision_vqa.conversation(drawn / "charts", [row, row])])
    assert [len(item.messages) for item in items] == [1, 3, 5, 7, 9, 11]
    assert [item.question for item in items[:3]] == [question for question, _ in row["turns"]]
    assert all(str(item.image).endswith(row["file"]) for item in items)
