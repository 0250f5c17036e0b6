"""Measurements that docs/performance.md quotes; each is a command that anyone can run."""
