"""Commands beside Lightning's verbs, one module each with a `main(argv)`."""
