"""The integrations with other frameworks: one file for each, which that framework imports."""
