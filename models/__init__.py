"""Example networks, plain PyTorch modules that know nothing of the tool that reads them."""
