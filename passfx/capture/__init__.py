"""PyTorch → a functional ATen graph in eval mode; the only place that traces."""
