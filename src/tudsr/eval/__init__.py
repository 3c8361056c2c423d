"""Measuring restored pictures: metrics by name, with and without a reference, and how visible window borders are."""
