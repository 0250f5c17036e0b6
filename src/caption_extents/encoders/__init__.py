"""Where chunks are encoded: in threads, in other processes, or on other machines."""
