"""Every family of models that people bring, static and with a dynamic batch; see `__main__`."""
