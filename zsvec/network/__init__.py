"""Requests to servers of others: answers bounded in bytes and in time."""
