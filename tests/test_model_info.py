"""Every model Tinker serves has facts and a renderer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinkerloop import model_info
from tinkerloop.errors import UnknownRendererError
from tinkerloop.renderers import get_registered_renderer_names

ELSEWHERE = ("kimi_k31_pro",)  # a format that is not written here, because no description of it is public


@pytest.mark.parametrize("model", model_info.known_models())
def test_every_known_model_has_a_renderer(model: str) -> None:
    names = model_info.get_recommended_renderer_names(model)
    assert names
    assert all(n in get_registered_renderer_names() or n.startswith(ELSEWHERE) for n in names)


@pytest.mark.parametrize(
    ("model", "renderer"),
    [
        ("Qwen/Qwen3-8B", "qwen3"),
        ("Qwen/Qwen3-8B:peft:131072", "qwen3"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3_instruct"),
        ("Qwen/Qwen3-8B-Base", "role_colon"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3"),
        ("openai/gpt-oss-20b", "gpt_oss_no_sysprompt"),
        ("moonshotai/Kimi-K2.6", "kimi_k26"),
        ("tiny", "qwen3_instruct"),
    ],
)
def test_the_recommended_renderer(model: str, renderer: str) -> None:
    assert model_info.get_recommended_renderer_name(model) == renderer


@pytest.mark.parametrize("model", model_info.known_models())
def test_a_model_of_the_cookbook_has_its_recommended_renderers(model: str) -> None:
    theirs = pytest.importorskip("tinker_cookbook.model_info")
    try:
        wanted = theirs.get_model_attributes(model)
    except KeyError:
        pytest.skip("the Cookbook does not know the model")
    ours = model_info.get_model_attributes(model)
    assert ours.recommended_renderers == wanted.recommended_renderers
    assert (ours.is_chat, ours.is_vl, ours.is_audio_in) == (wanted.is_chat, wanted.is_vl, wanted.is_audio_in)


def test_every_model_of_the_cookbook_is_known() -> None:
    theirs = pytest.importorskip("tinker_cookbook.model_info")
    groups = [value() for name, value in vars(theirs).items() if name.startswith("get_") and name.endswith("_info")]
    names = [f"{attributes.organization}/{model}" for group in groups for model, attributes in group.items()]
    assert len(names) == 46
    assert set(names) <= set(model_info.known_models())


@pytest.mark.parametrize("name", ["thinkingmachines/Inkling-3", "Inkling-2", "thinkingmachines/Inkling-Small-Base"])
def test_an_unknown_inkling_model_names_the_known_ones_and_their_renderer(name: str) -> None:
    with pytest.raises(UnknownRendererError, match=r"thinkingmachines/Inkling-Small, .*'tml_v0'"):
        model_info.get_model_attributes(name)


def test_a_retired_model_is_warned_about_with_a_served_one(caplog) -> None:
    retired = [name for name in model_info.known_models() if model_info.get_model_attributes(name).is_retired]
    assert len(retired) == 5
    for name in retired:
        caplog.clear()
        model_info.warn_if_retired(f"{name}:peft:131072")
        instead = caplog.text.rpartition("consider ")[2].partition(" instead")[0]
        assert instead in model_info.known_models()
        assert instead not in retired
    caplog.clear()
    model_info.warn_if_retired("Qwen/Qwen3-8B")
    model_info.warn_if_retired("who/knows")
    assert not caplog.records


def test_no_page_or_recipe_suggests_a_retired_model() -> None:
    root = Path(__file__).parents[1]
    pages = [*root.glob("*.md"), *root.glob("sdk/**/*.md"), *root.glob("recipes/**/*")]
    for page in pages:
        if page.is_file() and page.suffix in (".md", ".py") and page.name != "CHANGELOG.md":
            for name in model_info._RETIRED:
                assert not re.search(re.escape(name) + r"(?![\w-])", page.read_text(encoding="utf-8")), page


def test_vision_and_base_models_say_so() -> None:
    assert model_info.get_model_attributes("Qwen/Qwen3-VL-30B-A3B-Instruct").is_vl
    assert not model_info.get_model_attributes("meta-llama/Llama-3.2-1B").is_chat


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8b", "Qwen/Qwen3-8B ", "qwen3-8b", "/nowhere/Qwen3-8B"])
def test_an_unknown_model_gets_the_nearest_names(name: str) -> None:
    with pytest.raises(UnknownRendererError, match="Qwen/Qwen3-8B"):
        model_info.get_model_attributes(name)


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, None, 5])
def test_what_is_no_name_is_no_folder(name) -> None:
    with pytest.raises(UnknownRendererError, match=r"is neither a folder nor a known name|as a string, got"):
        model_info.get_model_attributes(name)


def test_a_folder_is_known_by_its_name_or_has_its_own_template(tmp_path) -> None:
    for name, renderer in (
        ("Qwen3-8B", "qwen3"),
        ("gemma-3-4b-it", "gemma3"),
        ("DeepSeek-R1-Distill-Qwen-1.5B", "deepseek_r1_distill"),
        ("gemma-4-31B-it", "gemma4"),
        ("gemma-4-E2B-it", "gemma4_e4b"),
        ("granite-3.1-8b-instruct", "granite3"),
        ("Llama-4-Scout-17B-16E-Instruct", "llama4"),
        ("Mistral-7B-Instruct-v0.3", "mistral_v3"),
        ("Mistral-Nemo-Instruct-2407", "mistral_v3_tekken"),
        ("Mistral-Small-3.1-24B-Instruct-2503", "mistral_v7_tekken"),
        ("Mistral-Small-3.2-24B-Instruct-2506", "mistral_v11"),
        ("Ministral-3-8B-Instruct-2512", "mistral_v13"),
        ("Ministral-3-14B-Reasoning-2512", "mistral_v13_reasoning"),
        ("Mistral-7B-Instruct-v0.2", "template"),  # an older chat format
        ("gemma-3n-E2B-it", "template"),  # another chat format
        ("gemma-3-4b-pt", "template"),  # a base model
        ("mystery", "template"),
    ):
        (tmp_path / name).mkdir()
        assert model_info.get_recommended_renderer_name(str(tmp_path / name)) == renderer


@pytest.mark.parametrize("pattern", model_info._NOT_SERVED)
def test_the_renderers_of_models_that_are_not_served_are_known(pattern: str) -> None:
    assert set(model_info._NOT_SERVED[pattern]) <= set(get_registered_renderer_names())


def test_a_renderer_that_was_not_made_for_the_model_is_warned_about(caplog) -> None:
    model_info.warn_if_renderer_not_recommended("Qwen/Qwen3-8B", "qwen3")
    model_info.warn_if_renderer_not_recommended("who/knows", "llama3")
    assert not caplog.records
    model_info.warn_if_renderer_not_recommended("Qwen/Qwen3-8B", "llama3")
    assert "use one of qwen3" in caplog.text
