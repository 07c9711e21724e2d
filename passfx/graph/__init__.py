"""torch.fx graphs: reading (`query`), running (`evaluate`), writing (`editor`), text."""
