"""``python -m caption_extents`` is the ``caption-extents`` command."""

from caption_extents.cli import main

main()
