"""The built-in emoji data set, made from Unicode's own data."""
