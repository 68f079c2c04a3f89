"""A regular package, since a dependency of Crafter installs one of the same name."""
