"""The driving domain and its commands: plans, data, metrics, and the `alphadrive` program."""
