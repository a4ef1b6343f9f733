"""Settings of every test: one thread, since the tests themselves run beside each other."""

import torch

torch.set_num_threads(1)
