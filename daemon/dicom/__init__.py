"""DICOM without a network: UIDs, encodings, data sets, SOP classes, status values."""
