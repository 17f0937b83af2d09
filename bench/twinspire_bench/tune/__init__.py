"""`twinspire tune`: the options of a repository with the most throughput within a latency budget, by measurement."""
