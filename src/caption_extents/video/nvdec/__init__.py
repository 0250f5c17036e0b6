"""Decoding on a GPU's own decoders (NVDEC): all of its engines at once, on segments of the video."""
