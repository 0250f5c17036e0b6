"""From label probabilities to captions, and to subtitle files."""
