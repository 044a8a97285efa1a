"""Files: the spool in a directory or a bucket."""
