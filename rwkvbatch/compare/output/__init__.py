"""A finished comparison in words, tables and pages."""
