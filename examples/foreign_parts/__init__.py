"""Parts for `peas`, each in one file, named in YAML by class path."""
