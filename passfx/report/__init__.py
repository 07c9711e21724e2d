"""What passfx found and did: frozen values (`model`), for people (`console`, `html`)."""
