"""Which sample goes into which chunk, VP9/WebM encoding, and reading samples back."""
