from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Remove the key, use one thread, and work in a home and a folder of the test's own that holds the recipes."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("recipes").symlink_to(RECIPES)
    yield
    torch.set_num_threads(threads)
