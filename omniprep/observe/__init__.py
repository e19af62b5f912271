"""What programs read of a run: events as lines of JSON (events.py), metrics for Prometheus (metrics.py), and the totals
that DIR/plan/progress.json holds (totals.py). What people see is omniprep/progress.py.
"""
