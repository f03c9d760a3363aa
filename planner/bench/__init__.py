"""Measure this machine with torch, and hold the prediction against it."""
