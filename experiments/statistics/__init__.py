"""Statistics of experiments: offline on paired users, online on arms, off policy on logged propensities."""
