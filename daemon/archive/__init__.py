"""Reports out to the archive, missing images in."""
