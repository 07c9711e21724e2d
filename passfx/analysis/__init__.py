"""What a graph holds: shortcuts, and what its operators cost. Reads graphs, never writes them."""
