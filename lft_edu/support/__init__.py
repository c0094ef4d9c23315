"""The ground floor, which knows no model: errors, files, settings, statistics, and what this machine has."""
