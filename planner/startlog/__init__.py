"""Start-up logs of inference engines, read back: what an engine found for weights, cache and graphs on a real machine."""
