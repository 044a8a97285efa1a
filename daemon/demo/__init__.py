"""`mammod demo`: the main job on eight real mammograms with ten known lesions, from sending to the stored reports."""
