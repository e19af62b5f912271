"""Model families: what a family is (registry), and those that ship with the package, one file each."""
