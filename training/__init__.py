"""Data readers, augmentation, fit, evaluate, reproduce and export. Never imported by `daemon`."""
