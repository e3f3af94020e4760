"""What describes containers: Compose's file, the Helm chart; see ``make test-containers``."""
