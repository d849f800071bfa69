"""What training will take, said before it is done: memory and time by a model of both, and what fits a GPU."""
