"""Reading the text of captions, once for each caption."""
