"""Comparing objectives: train the arms, evaluate them alike, and report."""
