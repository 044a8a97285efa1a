"""Results as DICOM objects: the report kinds, what all of them have in common, and the picture of a case."""
