"""A package that is not installed is an error that names the extra."""

import importlib
import subprocess
import sys

import pytest

import tinkerloop
from tinkerloop.data import load_conversations
from tinkerloop.errors import DataError, MissingPackageError
from tinkerloop.extras import needs_extra
from tinkerloop.loop import MLflow, TensorBoard, WandB
from tinkerloop.plots import plot_schedule

USES = {
    "mlflow": (lambda folder: MLflow(folder).open(0, 0), "mlflow"),
    "wandb": (lambda folder: WandB(folder).open(0, 0), "wandb"),
    "matplotlib": (lambda folder: plot_schedule(float, 3, folder / "a.png"), "plots"),
    "tensorboard": (lambda folder: TensorBoard(folder).open(0, 0), "tensorboard,local"),
    "transformers": (lambda folder: tinkerloop.get_tokenizer(folder), "local"),
}


@pytest.mark.parametrize("package", USES)
def test_the_extra_of_a_missing_package_is_named(package, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package or name.startswith("torch.utils.t")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    use, extra = USES[package]
    with pytest.raises(MissingPackageError) as missing:
        use(tmp_path)
    assert f"pip install 'tinkerloop-sdk[{extra}]'" in str(missing.value)


@pytest.mark.parametrize("package", ["torch", "transformers", "safetensors"])
def test_the_embedded_engine_names_its_extra(package):
    program = f"import sys; sys.modules[{package!r}] = None; import tinkerloop; tinkerloop.connect('local')"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = answer.stderr.strip().splitlines()[-1]
    assert f"the embedded engine needs the package {package}" in last
    assert "pip install 'tinkerloop-sdk[local]'" in last


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_the_server_names_its_extra(package, monkeypatch):
    for name in [name for name in sys.modules if name == package or name.startswith("tinkerloop.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"the server needs the package {package}.*tinkerloop-sdk\[serve\]"):
        importlib.import_module("tinkerloop.server")


@pytest.mark.parametrize(
    ("package", "path"), [("datasets", "owner/name"), ("pyarrow", "rows.parquet"), ("pyarrow", "rows.jsonl.zst")]
)
def test_data_beyond_plain_files_name_their_extra(package, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    (tmp_path / "rows.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"requires the package `?{package}.*pip install 'tinkerloop-sdk\[data\]'"):
        load_conversations(path)


def test_a_missing_module_of_the_package_itself_is_not_blamed_on_an_extra():
    with pytest.raises(ModuleNotFoundError) as missing, needs_extra("local", "this"):
        import tinkerloop.no_such_module  # noqa: F401  # pyright: ignore
    assert not isinstance(missing.value, MissingPackageError)


def test_an_error_of_a_package_without_a_module_says_to_upgrade_it() -> None:
    with (
        pytest.raises(MissingPackageError, match=r"pip install --upgrade tinker ") as missing,
        needs_extra("local", "this"),
    ):
        importlib.import_module("tinker.no_such_module")
    assert missing.value.name == "tinker.no_such_module"


def test_the_ordered_service_needs_no_hypothesis_and_the_kit_of_renderers_names_its_extra():
    program = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from tinkerloop.testing import OrderedService, check_callback, check_loop\n"
        "print(OrderedService().vocab_size)\n"
        "from tinkerloop.testing import check_renderer"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout == "64\n"
    last = answer.stderr.strip().splitlines()[-1]
    assert "the check kit of renderers needs the package hypothesis" in last
    assert "pip install 'tinkerloop-sdk[testing]'" in last
