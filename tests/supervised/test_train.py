import asyncio
import dataclasses
import importlib
import io
import json
import math
from pathlib import Path

import chz
import pytest

import tinkerloop
from tinkerloop import Callback, Log, make_datum
from tinkerloop.cli import chat
from tinkerloop.cli.main import main as cli
from tinkerloop.data import batches, conversation_datums, load_conversations
from tinkerloop.errors import CheckpointError, DataError, DatumError, PlanError
from tinkerloop.local import ServiceClient
from tinkerloop.loop import background
from tinkerloop.loop.schedules import constant
from tinkerloop.renderers import get_renderer
from tinkerloop.supervised import train
from tinkerloop.supervised.data import FromConversationFileBuilder
from tinkerloop.supervised.evaluators import NLLEvaluator, SamplingClientEvaluator, as_evaluator, utf8_bytes
from tinkerloop.supervised.types import ChatDatasetBuilderCommonConfig
from tinkerloop.tokenizers import get_tokenizer


@pytest.fixture
def make(conversations_file):
    def config(**options):
        common = ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer="tiny", renderer_name="qwen3_instruct", max_length=128, batch_size=4
        )
        builder = FromConversationFileBuilder(
            common_config=common, file_path=str(conversations_file), test_size=options.pop("test_size", 4)
        )
        return train.Config(
            **{"model_name": "tiny", "log_path": "run", "dataset_builder": builder, "lora_rank": 4, **options}
        )

    return config


def run(config):
    return asyncio.run(train.main(config))


def rows(folder="run"):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def steps(folder="run"):
    return [row for row in rows(folder) if "loss" in row]


def test_a_run_is_configured_trained_tested_and_written_down(make):
    summary = run(make(num_epochs=2, learning_rate=1e-2))
    assert (summary.step, summary.reason) == (10, "steps reached")
    assert steps()[-1]["loss"] < steps()[0]["loss"]
    assert [row["step"] for row in rows() if "test/nll" in row] == [0, 10]
    assert json.loads(Path("run/config.json").read_text())["dataset_builder"]["common_config"]["max_length"] == 128


def test_an_interrupted_run_ends_as_one_that_was_not(make):
    options = {"num_epochs": 3, "save_every": 2, "lr_schedule": "cosine", "warmup_steps": 2, "eval_every": 4}
    run(make(log_path="whole", **options))

    class Breaks(Callback):
        def on_step(self, result):
            if result.step == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make(log_path="broken", callbacks=(Breaks(),), **options))
    run(make(log_path="broken", **options))
    assert rows("broken") == rows("whole")


def test_a_run_is_not_resumed_with_another_accumulation(make):
    run(make(max_steps=2, lr_schedule="constant"))
    before = rows()
    with pytest.raises(CheckpointError, match="trained with batches=1 in each step, got batches=2"):
        run(make(gradient_accumulation_steps=2, lr_schedule="constant"))
    assert rows() == before


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_warmup_longer_than_the_run_is_warned_of(make, caplog, dry_run):
    run(make(max_steps=2, warmup_steps=8, learning_rate=0.4, dry_run=dry_run))
    (message,) = [record.getMessage() for record in caplog.records if "warmup_steps" in record.getMessage()]
    assert "warmup_steps=8 is more than the 2 steps of the run: the learning rate rises only to 0.1" in message


def test_a_warmup_as_long_as_the_run_is_not_warned_of(make, caplog):
    run(make(max_steps=2, warmup_steps=2))
    assert "warmup_steps" not in caplog.text


def test_more_epochs_extend_a_run(make):
    run(make(num_epochs=1, lr_schedule="constant"))
    run(make(num_epochs=2, lr_schedule="constant"))
    assert [row["step"] for row in steps()] == list(range(10))


def test_accumulation_takes_several_batches_to_a_step(make):
    summary = run(make(gradient_accumulation_steps=2))
    assert summary.step == 3  # five batches of four
    assert steps()[0]["tokens"] > 1.5 * steps()[-1]["tokens"]


def test_batch_size_and_max_steps_override_the_builder(make):
    assert run(make(batch_size=10)).step == 2
    assert run(make(log_path="short", max_steps=1)).step == 1


def test_the_learning_rate_follows_the_schedule_and_its_warmup(make):
    def rates(steps=10, **options):
        schedule = train.learning_rates(make(learning_rate=1.0, **options), steps)
        return [round(schedule(step), 3) for step in range(steps)]

    assert rates(5) == [1, 0.8, 0.6, 0.4, 0.2]
    assert rates(6, warmup_steps=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates(3, lr_schedule="constant") == [1, 1, 1]
    assert rates(4, lr_schedule="cosine")[2] == 0.5
    assert rates(2, lr_schedule=constant(0.25)) == [0.25, 0.25]
    with pytest.raises(PlanError, match="set max_steps"):
        train.learning_rates(make(), None)


def test_the_held_out_loss_is_the_mean_over_trained_tokens_and_bytes(make):
    tokenizer = get_tokenizer("tiny")
    datums = conversation_datums(
        load_conversations("conversations.jsonl"), get_renderer("qwen3_instruct", tokenizer), 128
    )
    client = ServiceClient().create_lora_training_client("tiny", rank=4)
    metrics = NLLEvaluator(datums, tokenizer=tokenizer, batch_size=5)(client).result()
    total = client.forward(datums, "cross_entropy").result().metrics["loss:sum"]
    trained = sum(sum(datum.loss_fn_inputs["weights"].tolist()) for datum in datums)
    text = sum(len(c.messages[1]["content"].encode()) for c in load_conversations("conversations.jsonl"))
    assert utf8_bytes(datums, tokenizer) == text
    assert metrics["nll"] == pytest.approx(total / trained, rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(total / (text * math.log(2)), rel=1e-5)


def test_further_evaluators_score_the_weights_of_their_boundary(make):
    class Replies(SamplingClientEvaluator):
        name = "replies"

        async def __call__(self, sampling_client):
            prompt = tinkerloop._lazy.tinker.ModelInput.from_ints([1, 2])
            params = tinkerloop._lazy.tinker.SamplingParams(max_tokens=3, temperature=0.0)
            response = await sampling_client.sample_async(prompt, 1, params)
            return {"tokens": len(response.sequences[0].tokens)}

    run(make(eval_every=2, evaluator_builders=(Replies,), infrequent_eval_every=4, infrequent_evaluator_builders=()))
    assert [row["step"] for row in rows() if "replies/tokens" in row] == [0, 2, 4, 5]


def test_a_coroutine_that_would_evaluate_too_late_is_refused():
    async def evaluate(client):
        return {}

    with pytest.raises(TypeError, match="submit its work too late"):
        as_evaluator(evaluate)


def test_rolling_checkpoints_keep_the_newest_beside_the_periodic_ones(make):
    run(make(num_epochs=3, save_every=5, rolling_save_every=1))
    assert [record.step for record in tinkerloop.Checkpoints("run").records()] == [5, 10, 15]


def test_callbacks_and_sinks_are_passed_on(make):
    seen = []

    class Counts(Callback):
        def on_step(self, result):
            return Log({"twice": 2.0 * result.step})

    run(make(max_steps=2, callbacks=(Counts(),), sinks=(lambda step, row: seen.append((step, row.get("twice"))),)))
    assert (1, 2.0) in seen


def test_training_starts_from_given_weights(make):
    run(make(max_steps=3, learning_rate=1e-2))
    path = tinkerloop.Checkpoints("run").latest().path
    run(make(log_path="more", max_steps=1, load_checkpoint_path=path))
    assert rows("more")[0]["test/nll"] == pytest.approx(rows("run")[-1]["test/nll"], rel=1e-6)


@pytest.mark.parametrize(
    ("option", "then", "now"), [("model_name", "tiny", "tiny-vl"), ("lora_rank", 4, 8), ("seed", 0, 1)]
)
def test_a_run_is_not_resumed_as_another_one(make, option, then, now):
    run(make(max_steps=1))
    config = Path("run/config.json").read_bytes()
    with pytest.raises(CheckpointError, match=f"started with {option}={then!r}, got {now!r}"):
        run(make(max_steps=2, **{option: now}))
    assert Path("run/config.json").read_bytes() == config


@pytest.mark.parametrize(("option", "then", "now"), [("model_name", "tiny", "tiny-vl"), ("lora_rank", 4, 8)])
def test_a_checkpoint_of_another_model_or_rank_is_refused(make, option, then, now):
    run(make(max_steps=1))
    path = tinkerloop.Checkpoints("run").latest().path
    with pytest.raises(CheckpointError, match=f"has {option}={then!r}, got {now!r}"):
        run(make(log_path="more", load_checkpoint_path=path, **{option: now}))


def test_a_resumed_run_prints_what_differs_from_its_last_start(make, capsys):
    run(make(max_steps=1, lr_schedule="constant"))
    assert "other options" not in capsys.readouterr().err
    run(make(max_steps=2, lr_schedule="constant", eval_every=5))
    table = capsys.readouterr().err.partition("the last start that trained it:\n")[2].splitlines()
    assert [line.split() for line in table[:3]] == [
        ["option", "then", "now"],
        ["max_steps", "1", "2"],
        ["eval_every", "10", "5"],
    ]


def test_an_unchanged_program_with_functions_is_resumed_without_other_options(make, tmp_path, capsys):
    def start():
        def build():
            datums = [make_datum([number, 1, 2], [0, 1, 1]) for number in range(8)]
            return datums, None

        def evaluator():
            return lambda client: background(lambda: {"x": 1.0})

        service = ServiceClient(root=tmp_path / "root")
        options = {"dataset_builder": build, "evaluator_builders": [evaluator], "service": service}
        run(make(batch_size=2, max_steps=2, lr_schedule="constant", **options))
        return json.loads(Path("run/config.json").read_text())

    first = start()
    assert start() == first
    assert "other options" not in capsys.readouterr().err
    assert first["service"] == "tinkerloop.local.client.service_client.ServiceClient"


def test_a_start_that_failed_is_not_what_a_resumed_run_is_compared_with(make, capsys):
    class Broken(Callback):
        def on_step(self, result):
            raise RuntimeError("too much")

    run(make(max_steps=1, lr_schedule="constant"))
    with pytest.raises(RuntimeError, match="too much"):
        run(make(max_steps=2, lr_schedule="constant", eval_every=5, callbacks=[Broken()]))
    capsys.readouterr()
    run(make(max_steps=1, lr_schedule="constant"))
    assert "other options" not in capsys.readouterr().err


@pytest.mark.parametrize("option", [{"weight_decay": 0.5}, {"grad_clip_norm": 1e-3}], ids=str)
def test_an_option_of_the_optimizer_changes_the_update(make, option):
    options = {"max_steps": 3, "lr_schedule": "constant", "learning_rate": 1e-2, "adam_eps": 1.0}
    run(make(log_path="plain", **options))
    run(make(log_path="changed", **options, **option))
    assert steps("changed")[0]["loss"] == steps("plain")[0]["loss"]
    assert steps("changed")[-1]["loss"] != steps("plain")[-1]["loss"]


def test_a_run_can_be_exported_and_chatted_with(make, tmp_path, capsys, monkeypatch):
    run(make(max_steps=1, service=ServiceClient(root=tmp_path / "elsewhere")))
    assert cli(["export", "run", "--to", "adapter"]) == 0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    chosen = []
    monkeypatch.setattr(chat, "get_renderer", lambda name, *_: chosen.append(name) or get_renderer(name, *_))
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n"))
    assert cli(["chat", "run", "--max-tokens", "2"]) == 0
    assert "assistant: " in capsys.readouterr().out
    assert chosen == ["qwen3_instruct"]


def test_a_run_of_the_default_root_can_be_exported(make, tmp_path):
    run(make(max_steps=1))
    assert cli(["export", "run", "--to", "adapter"]) == 0


def test_bad_data_ends_a_run_before_it_starts(make):
    with open("conversations.jsonl", "a") as file:
        file.write('{"messages": []}\n')
    with pytest.raises(DataError, match=r"conversations\.jsonl:25: "):
        run(make())
    assert not Path("run").exists()


def no_weights(datum):
    inputs = {"target_tokens": datum.loss_fn_inputs["target_tokens"]}
    return dataclasses.replace(datum, loss_fn_inputs=inputs)


@pytest.mark.parametrize("place", ["training", "test"])
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [(lambda datum: None, "expected tinker.Datum, got a NoneType"), (no_weights, "wrong loss inputs")],
)
def test_a_datum_that_cannot_be_trained_on_ends_a_run_before_it_starts(make, place, spoil, problem):
    good = [make_datum([number, 1, 2], [0, 1, 1]) for number in range(8)]
    bad = [*good[:5], spoil(good[5]), *good[6:]]
    data = (bad, good) if place == "training" else (good, bad)
    with pytest.raises((DatumError, PlanError), match=problem) as caught:
        run(make(dataset_builder=lambda: data, batch_size=2))
    assert "in datum 5 of the dataset class list" in caught.value.__notes__[0]
    assert not Path("run/metrics.jsonl").exists()


def test_test_data_needs_no_batch_size(make):
    datums = [make_datum([number, 1, 2], [0, 1, 1]) for number in range(8)]
    run(make(dataset_builder=lambda: (datums, datums), batch_size=2, max_steps=1))
    assert "test/nll" in rows()[0]


@pytest.mark.parametrize("value", [0, 2.5, math.nan, True, "4"])
@pytest.mark.parametrize(
    "option", ["num_epochs", "max_steps", "batch_size", "gradient_accumulation_steps", "ttl_seconds"]
)
def test_a_count_that_must_be_positive_is_refused_with_its_name(make, option, value):
    with pytest.raises(PlanError, match=f"{option} must be a whole number of at least 1, got {value!r}"):
        make(**{option: value})


@pytest.mark.parametrize("value", [-1, 2.5, math.nan])
@pytest.mark.parametrize("option", ["eval_every", "save_every", "rolling_save_every", "submit_ahead", "warmup_steps"])
def test_a_cadence_may_be_0_and_nothing_less(make, option, value):
    make(**{option: 0})
    with pytest.raises(PlanError, match=f"{option} must be a whole number of at least 0, got {value}"):
        make(**{option: value})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"prices": "prices.toml"}, "prices='prices.toml' has no effect without dry_run: set dry_run=True"),
        (
            {"service": "local", "base_url": "http://me:pw@host"},
            r"base_url='http://\*\*\*@host' has no effect beside service",
        ),
        ({"lr_schedule": "linaer", "dry_run": True}, "lr_schedule must be .* got 'linaer'"),
        ({"lr_schedule": None}, "lr_schedule must be .* got None"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused_when_it_is_set(make, options, problem):
    with pytest.raises(PlanError, match=problem):
        make(**options)


def test_a_name_in_weights_and_biases_without_a_project_is_accepted_as_by_the_cookbook(make):
    assert make(wandb_name="run").wandb_project is None


def test_a_renderer_that_is_not_the_builders_is_refused(make):
    assert make(renderer_name="qwen3_instruct", recipe_name="sft").renderer_name == "qwen3_instruct"
    with pytest.raises(PlanError, match="renderer_name is 'qwen3', but the dataset builder uses 'qwen3_instruct'"):
        make(renderer_name="qwen3")


@pytest.mark.parametrize("built", [None, [1, 2], (1, 2, 3)])
def test_a_builder_that_returns_something_else_is_told_what_to_return(make, built):
    with pytest.raises(DataError, match=r"must return \(training data, test data or None\)"):
        run(make(dataset_builder=lambda: built))


def test_workers_without_a_cache_are_refused(make):
    with pytest.raises(DataError, match="workers=2 requires a cache to render into; set cache"):
        chz.replace(make().dataset_builder, workers=2)()


def test_a_folder_of_images_beside_a_cache_is_refused(make, tmp_path):
    with pytest.raises(DataError, match="image_root='images' has no effect with a cache"):
        chz.replace(make().dataset_builder, cache=str(tmp_path), image_root="images")()


def test_the_rows_of_a_file_are_said_also_when_all_are_used(make, capsys):
    make().dataset_builder()
    assert "conversations.jsonl: 24 rows, all used" in capsys.readouterr().err


def test_changed_data_are_noticed_on_resume(make):
    run(make(max_steps=2))
    path = Path("conversations.jsonl")
    path.write_text(path.read_text().replace("I say", "We say"))
    with pytest.raises(DataError, match="taken from other data: fingerprint"):
        run(make(max_steps=4))


def test_a_users_cookbook_script_runs_with_other_imports(conversations_file, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    script = importlib.import_module("cookbook_script")
    script.cli_main(
        script.CLIConfig(model_name="tiny", file_path=str(conversations_file), log_path="run", num_epochs=2)
    )
    assert [row["step"] for row in steps()] == list(range(6))
    assert [row["step"] for row in rows() if "test/nll" in row] == [0, 2, 4, 6]


def test_every_option_is_described():
    undescribed = [name for name, field in chz.chz_fields(train.Config).items() if not field._doc]
    assert undescribed == []


def test_the_loop_can_be_used_with_any_data_set_directly(make):
    train_data, _ = make().dataset_builder()
    whole = list(train_data.batches(epochs=2, seed=3))
    assert [len(batch) for batch in whole] == [4, 4, 4, 4, 4] * 2
    assert isinstance(train_data.batches(), type(batches([1], 1)))


def test_a_run_starts_from_the_newest_weights_of_a_folder(make):
    run(make(log_path="first", max_steps=2))
    run(make(log_path="second", max_steps=1, load_checkpoint_path="first", learning_rate=0.0, lr_schedule="constant"))
    assert steps("second")[0]["loss"] == pytest.approx(first_loss_with(make, "first"), rel=1e-6)
    with pytest.raises(CheckpointError, match="folder without a checkpoint"):
        run(make(log_path="third", load_checkpoint_path=".", max_steps=1))


def first_loss_with(make, folder):
    path = json.loads((Path(folder) / "checkpoints.jsonl").read_text().splitlines()[-1])["path"]
    run(make(log_path="by_path", max_steps=1, load_checkpoint_path=path))
    return steps("by_path")[0]["loss"]


def test_only_the_last_record_of_a_run_has_sampler_weights(make):
    run(make(save_every=2, max_steps=4))
    saved = [json.loads(line) for line in Path("run/checkpoints.jsonl").read_text().splitlines()]
    assert [line["sampler_path"] is not None for line in saved] == [False, True]


def test_checkpoints_can_be_saved_by_tokens(make):
    run(make(save_every=0, save_every_tokens=1, max_steps=3))
    saved = [json.loads(line)["step"] for line in Path("run/checkpoints.jsonl").read_text().splitlines()]
    assert saved == [1, 2, 3]


def test_the_learning_rate_none_is_the_recommended_one_of_the_model(make):
    assert make(model_name="Qwen/Qwen3-8B", learning_rate=None).learning_rate == pytest.approx(4.73e-4, rel=1e-3)
    with pytest.raises(PlanError, match="set learning_rate"):
        make(model_name="openai/gpt-oss-20b", learning_rate=None)


def test_a_dry_run_prints_an_estimate_and_writes_nothing(make, capsys):
    Path("prices.toml").write_text("[tiny]\ntrain = 2\nprefill = 1\n")
    summary = run(make(num_epochs=3, dry_run=True, prices="prices.toml"))
    assert (summary.step, summary.reason) == (0, "dry run")
    printed = capsys.readouterr().out
    assert "steps                15 (5 batches in each of 3 epochs)" in printed
    assert "evaluations          3, each of " in printed
    assert "at train 2, prefill 1 per million tokens" in printed
    assert not Path("run").exists()


@pytest.mark.parametrize("value", ["1e-3", -1e-3, math.nan, math.inf])
@pytest.mark.parametrize("option", ["learning_rate", "weight_decay", "adam_beta1", "save_every_seconds"])
def test_a_rate_is_a_finite_number_of_at_least_0(make, option, value):
    with pytest.raises(PlanError, match=f"{option} must be a finite number of at least 0, got {value!r}"):
        make(**{option: value})
