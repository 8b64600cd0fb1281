import numpy as np
import pytest

from tinkerloop.callbacks import Checkpoint, Evaluate, LRSchedule, Timing
from tinkerloop.datum import make_datum
from tinkerloop.loop import Loop, Run, background, open_training_client
from tinkerloop.loop.schedules import constant
from tinkerloop.testing import OrderedService

REPLIES = [("</script><script>alert(1)</script>", 1.0), ("\x1b[2J<b>bold</b>", 0.0), ("plain & simple", 0.5)]


def train(folder, steps, service, config=None):
    """Train, or go on training, a run with evaluations, samples, checkpoints and timings in `folder`."""
    rng = np.random.default_rng(0)
    batches = [[make_datum(rng.integers(0, 20, 7), np.arange(7) % 2)] for _ in range(20)]

    def evaluator(client):
        samples = [
            {"messages": [{"role": "user", "content": f"say {text}"}], "reply": text, "reference": "?", "score": score}
            for text, score in REPLIES
        ]
        return background(lambda: {"exact_match": 0.25, "samples": samples})

    with Run(folder, config={"steps": steps, "learning_rate": 0.1, **(config or {})}) as run:
        record = run.checkpoints.latest()
        loop = Loop(
            open_training_client(service, record, base_model="unigram"),
            batches,
            steps=steps,
            callbacks=[
                LRSchedule(constant(0.1)),
                Evaluate("test", evaluator, every=2, samples=run.folder / "samples.jsonl"),
                Checkpoint(every=2),
                Timing(file=run.folder / "timings.jsonl"),
            ],
            sinks=[run.metrics],
            checkpoints=run.checkpoints,
            record=record,
        )
        run.describe(data="20 rows, all used")
        run.finish(loop.run())


@pytest.fixture
def run_folder(tmp_path):
    """A run of 4 steps that was resumed and went on to step 8."""
    service = OrderedService(vocab_size=20)
    train(tmp_path / "one", 4, service)
    train(tmp_path / "one", 8, service)
    return tmp_path / "one"
