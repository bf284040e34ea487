"""Quality of recommendations: cold items in draws of them, and several data sets and draws in one table."""
