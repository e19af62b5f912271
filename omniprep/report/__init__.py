"""report.html: what is in a dataset, at a glance and down to the token, as one page that needs no network."""
