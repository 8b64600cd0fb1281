"""`tinkerloop export` and `tinkerloop chat` on checkpoints of the embedded engine."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.local.tiny_models import write_model
from tinkerloop.cli.chat import Chat, obey, open_sampler, talk
from tinkerloop.cli.main import main
from tinkerloop.data import load_conversations
from tinkerloop.local.runtime.checkpoint_export import export_checkpoint
from tinkerloop.loop import Checkpoints
from tinkerloop.loop.checkpoints import Record
from tinkerloop.renderers import get_renderer


@pytest.fixture
def run_folder(service, datum, adam, tmp_path) -> Path:
    """Create a run folder like that of a finished run: a checkpoint record, with the engine's files one level up."""
    client = service.create_lora_training_client("tiny", rank=4)
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2))
    path = client.save_state("last").result().path
    folder = tmp_path / "run"
    Checkpoints(folder).append(Record(step=1, path=path, cursor=0, callbacks={}, metrics={}))
    (folder / "service").symlink_to(tmp_path)
    return folder


def test_a_merged_export_is_a_model_with_the_checkpoints_logprobs(run_folder, tmp_path, tokens, capsys):
    assert main(["export", str(run_folder), "--to", str(tmp_path / "merged"), "--merged"]) == 0
    ids = tokens(5, 20)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        lp = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = open_sampler(str(run_folder), None).compute_logprobs(tinker.ModelInput.from_ints(ids)).result()[1:]
    np.testing.assert_allclose(lp.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy(), expected, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").encode("A") == [65]


def test_an_adapter_export_holds_pefts_two_files_and_nothing_is_overwritten(run_folder, tmp_path, capsys):
    command = ["export", str(run_folder), "--to", str(tmp_path / "adapter")]
    assert main(command) == 0
    names = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json"}
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err


def prompt_logprobs(model, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        lp = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return lp.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def test_an_adapter_of_tied_embeddings_is_exported_with_a_warning_that_pefts_merge_is_wrong(
    service, datum, adam, tokens, tmp_path
):
    from peft import PeftModel

    folder = write_model("qwen2", tmp_path / "base")
    client = service.create_lora_training_client(str(folder), rank=4)
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-1))
    (output,) = client.forward([datum(0)], "cross_entropy").result().loss_fn_outputs
    path, expected, ids = client.save_state("a").result().path, output["logprobs"].to_numpy(), tokens(0, 13)
    with pytest.warns(UserWarning, match=r"must not be merged with PEFT \(merge_and_unload\):.*--merged"):
        export_checkpoint(tmp_path, path, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    np.testing.assert_allclose(prompt_logprobs(adapted, ids), expected, atol=1e-4)
    assert np.abs(prompt_logprobs(adapted.merge_and_unload(), ids) - expected).max() > 0.1  # what the warning is about
    export_checkpoint(tmp_path, path, tmp_path / "merged", merged=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    np.testing.assert_allclose(prompt_logprobs(merged, ids), expected, atol=1e-4)


@pytest.mark.parametrize(("architecture", "unembed"), [("qwen3", True), ("qwen2", False)])
def test_other_adapters_are_exported_without_a_warning(service, tmp_path, recwarn, architecture, unembed):
    folder = write_model(architecture, tmp_path / "base")
    client = service.create_lora_training_client(str(folder), rank=4, train_unembed=unembed)
    export_checkpoint(tmp_path, client.save_state("a").result().path, tmp_path / "adapter")
    assert not [warning for warning in recwarn if "PEFT" in str(warning.message)]


def test_an_adapter_whose_base_model_is_gone_is_exported_with_a_warning(service, tmp_path):
    folder = write_model("qwen3", tmp_path / "base")
    path = service.create_lora_training_client(str(folder), rank=4).save_state("a").result().path
    folder.rename(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="if the output layer of .*base shares its weight"):
        export_checkpoint(tmp_path, path, tmp_path / "adapter")


def test_a_run_without_checkpoints_is_refused(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "x")]) == 2
    assert "has no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["chat"], ["export", "--to", "adapter"]], ids=["chat", "export"])
def test_checkpoints_in_another_folder_are_asked_for_by_root(run_folder, capsys, tmp_path, monkeypatch, command):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (run_folder / "service").unlink()
    assert main([*command, str(run_folder)]) == 2
    assert "as --root, if it is not" in capsys.readouterr().err


def test_chat_streams_replies_and_keeps_the_conversation(run_folder):
    chat = chat_of(run_folder)
    prompts, out = [], io.StringIO()
    build = chat.renderer.build_generation_prompt
    chat.renderer.build_generation_prompt = lambda messages, **k: prompts.append(len(messages)) or build(messages, **k)
    talk(chat, ["hello\n", "again\n", "/reset\n", "new\n", "\n", "never\n"], out)
    assert out.getvalue().count("assistant: ") == 3
    assert prompts == [1, 3, 1]


def chat_of(run_folder: Path) -> Chat:
    sampler = open_sampler(str(run_folder), None)
    renderer = get_renderer("qwen3", sampler.get_tokenizer())
    return Chat(
        sampler, renderer, tinker.SamplingParams(max_tokens=5, temperature=0, stop=renderer.get_stop_sequences())
    )


def test_chat_shows_a_reply_of_a_client_that_cannot_stream(run_folder):
    class Complete:
        def __init__(self, sampler):
            self.sample = sampler.sample

    chat, streamed, complete = chat_of(run_folder), io.StringIO(), io.StringIO()
    talk(chat, ["hello\n"], streamed)
    talk(dataclasses.replace(chat, sampler=Complete(chat.sampler), messages=[]), ["hello\n"], complete)
    assert complete.getvalue() == streamed.getvalue()


def test_the_commands_of_a_chat_change_what_is_sampled_and_save_it(run_folder, tmp_path):
    chat = chat_of(run_folder)
    assert "without a system message" in obey(chat, "/system")
    assert "with this system message" in obey(chat, "/system Be brief.")
    assert obey(chat, "/temperature 0.25") == "the temperature is 0.25"
    assert chat.params.temperature == 0.25
    talk(chat, ["hello\n"], io.StringIO())
    file = tmp_path / "chats.jsonl"
    assert obey(chat, f"/save {file}") == f"3 messages written to {file}"
    assert load_conversations(file)[0].messages == chat.conversation
    assert chat.conversation[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("/bye", "there is no command /bye\n/help"),
        ("/temperature hot", "/temperature: expected a number of at least 0, got 'hot'"),
        ("/temperature nan", "/temperature: expected a number of at least 0, got 'nan'"),
        ("/save", "/save: expected the name of a file"),
        ("/save /dev/null/chats", "/save: [Errno 20] Not a directory"),
    ],
)
def test_a_mistyped_command_of_a_chat_is_answered_and_the_chat_goes_on(run_folder, command, answer):
    chat, out = chat_of(run_folder), io.StringIO()
    talk(chat, [command + "\n", "hello\n"], out)
    assert answer in out.getvalue()
    assert len(chat.messages) == 2


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["chat", "tinker://none/weights/00", "--root", "{tmp}"], "checkpoint tinker://none/weights/00 not found"),
        (["export", "{run}", "--to", "/dev/null/adapter"], "'/dev/null/adapter'"),
    ],
)
def test_what_the_service_or_the_disk_refuses_is_one_line(run_folder, tmp_path, capsys, monkeypatch, command, problem):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main([word.format(tmp=tmp_path, run=run_folder) for word in command]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"tinkerloop {command[0]}: ")
    assert problem in error


@pytest.mark.parametrize("place", ["runs/typo", "./typo", "a/b/typo"])
def test_chat_with_a_mistyped_run_folder_says_that_there_is_none(place, run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    run_folder.rename(tmp_path / "runs" / "first")
    assert main(["chat", place]) == 2
    assert f"no run folder {place}; pass" in capsys.readouterr().err
