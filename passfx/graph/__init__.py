"""torch.fx graphs: reading them (`query`, `shapes`), running, writing (`editor`), as text."""
