"""Everything between the clients and the model: request queue, checking and execution of requests, checkpoints."""
