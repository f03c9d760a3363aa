"""Speed of kvplan, each figure beside a yardstick in the same run. Run with ``python -m benchmarks`` or ``make bench``."""
