"""More than one process: how a model is spread over them, and what happens when one fails."""
