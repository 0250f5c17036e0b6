"""The job as a whole: its stages, two ways to wire them, and where the time goes."""
