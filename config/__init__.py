"""Settings of mammod: the schema (`config.settings`) and the default file (`config/mammod.toml`)."""

__version__ = "0.1.0"
