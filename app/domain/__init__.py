"""Domain types shared by all packages: frozen values, errors and pure rules, no I/O. Imports no other package of app."""
