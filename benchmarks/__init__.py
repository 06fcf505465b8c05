"""What `make bench` runs: each row is us and another, measured in turns in one run."""
