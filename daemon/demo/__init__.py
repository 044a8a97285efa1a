"""`mammod demo`: eight real mammograms with ten known lesions, from sending them to the stored reports."""
