"""A simulation of people with known tastes: what they would click and buy, and the exact expectation of it."""
