"""What the user named → a model and example inputs: a table of forms (`load`), one file a form."""
