"""Read what a SEG or SR marks on mammograms as outlines in image pixels, by pure functions on data sets."""
