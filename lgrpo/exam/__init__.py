"""`lgrpo eval`: checkpoints answer benchmarks, samples are kept, and scores are compared."""
