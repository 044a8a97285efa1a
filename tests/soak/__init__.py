"""Long runs of what `make test` does in short: `make soak`, bounded in time, with a report in
soak-output/.
"""
