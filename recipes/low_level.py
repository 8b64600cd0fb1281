"""Train with the client alone, without `Loop`: build a datum by hand, submit requests, wait, save, load and sample.

    python -m recipes.low_level
    python -m recipes.low_level service=tinker model=Qwen/Qwen3-8B-Base
    python -m recipes.low_level --help

The rest of this project does the same and prevents the usual mistakes: targets that are not shifted by one, weights
that are not aligned with the tokens, and waiting for each result before submitting the next request.

What you should see: the loss falls from 10.4 to below 0.1 in 30 steps, and the model completes the sentence that it was
trained on.
"""

import chz
import numpy as np
import tinker

import tinkerloop
from recipes.command_line import run_from_command_line

PROMPT, COMPLETION = "The capital of Atlantis is", " Poseidonis.\n"


@chz.chz
class Config:
    model: str = chz.field(default="recipes/base", doc="Base model: a folder or a model name of the service.")
    service: str = chz.field(default="local", doc="Service to use: local, tinker, or a URL.")
    steps: int = chz.field(default=30, doc="Number of optimizer steps.")
    learning_rate: float = chz.field(default=3e-3, doc="Learning rate.")
    lora_rank: int = chz.field(default=16, doc="Rank of the LoRA adapter.")


def make_datum(tokenizer: object, prompt: str, completion: str) -> tinker.Datum:
    """Return a datum whose loss covers the completion but not the prompt.

    Position i of the input predicts token i + 1, so targets and weights are shifted by one.
    """
    encode = tokenizer.encode  # type: ignore[attr-defined]
    prompt_tokens = encode(prompt, add_special_tokens=False)
    completion_tokens = encode(completion, add_special_tokens=False)
    tokens = prompt_tokens + completion_tokens  # (N,)
    weights = [0.0] * len(prompt_tokens) + [1.0] * len(completion_tokens)  # (N,)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),  # (N - 1,)
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(np.array(tokens[1:], dtype=np.int64)),
            "weights": tinker.TensorData.from_numpy(np.array(weights[1:], dtype=np.float32)),
        },
    )


def main(config: Config) -> str:
    service = tinkerloop.connect(config.service)
    client = service.create_lora_training_client(config.model, rank=config.lora_rank, seed=0)
    tokenizer = client.get_tokenizer()
    datum = make_datum(tokenizer, PROMPT, COMPLETION)
    trained = float(datum.loss_fn_inputs["weights"].to_numpy().sum())

    for step in range(config.steps):
        # Submit both requests before waiting, so that the service executes one directly after the other.
        forward_backward = client.forward_backward([datum], "cross_entropy")
        optim_step = client.optim_step(tinker.AdamParams(learning_rate=config.learning_rate))
        loss = forward_backward.result().metrics["loss:sum"] / trained
        optim_step.result()
        if step % 5 == 0 or step + 1 == config.steps:
            print(f"step {step:3d}  loss {loss:.4f} per trained token")

    # Save a checkpoint, create a new client from it, and sample from this client.
    saved = client.save_state("low-level", overwrite=True).result().path
    again = service.create_training_client_from_state_with_optimizer(saved)
    sampler = again.save_weights_and_get_sampling_client()
    params = tinker.SamplingParams(max_tokens=20, temperature=0.0, stop=["\n"])
    prompt = tinker.ModelInput.from_ints(tokenizer.encode(PROMPT, add_special_tokens=False))
    completion = tokenizer.decode(sampler.sample(prompt, 1, params).result().sequences[0].tokens)
    print(f"saved as {saved}\n{PROMPT!r} -> {completion!r}")
    return completion


if __name__ == "__main__":
    run_from_command_line(main)
