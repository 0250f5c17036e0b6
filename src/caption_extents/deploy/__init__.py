"""Running jobs and encoders on Modal and on Ray."""
