"""Decoders of a video's samples on the CPU, and what every decoder promises."""
