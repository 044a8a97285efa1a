"""What is known of DICOM without a network: UIDs, encodings, data sets, SOP classes."""
