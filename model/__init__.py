"""Networks, ROI geometry and normalisation, the bundle, and inference engines. Never imports `daemon`."""
