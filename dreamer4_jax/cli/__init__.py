"""The command line `dreamer4`: parses and delegates."""
