"""Probes of frozen encoders: `task` what is asked, `protocol` how it is judged, `heads` the classifiers."""
