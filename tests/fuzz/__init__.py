"""Hostile input: grammar-aware mutations, and what every reader and the embedded server must keep to under them."""
