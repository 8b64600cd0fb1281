import pytest


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """No key, one thread, and a home, a working directory and an engine's root that belong to the test."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)
