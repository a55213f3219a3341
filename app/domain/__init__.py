"""The words every room shares: frozen values, no I/O. Imports only `errors`."""
