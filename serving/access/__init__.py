"""Who may call the service, and how much: keys, roles, hosts, origins, and the logs of calls."""
