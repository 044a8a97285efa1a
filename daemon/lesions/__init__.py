"""Lesion objects: what a SEG or SR marks on mammograms, read as outlines in image pixels. Pure functions on data sets."""
