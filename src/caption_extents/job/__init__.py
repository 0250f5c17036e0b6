"""The job as a whole: open everything, run the stages, commit the results."""
