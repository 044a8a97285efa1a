"""Reports: from lesions and predictions to the DICOM objects that are stored in the archive; pure functions."""
