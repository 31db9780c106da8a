"""What `make gpu` runs on a machine with a card: `run` starts the `parts` in order, as processes; `record` writes."""
