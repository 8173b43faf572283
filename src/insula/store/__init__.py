"""What Insula remembers: keys, users, spending, conversations and the audit log, in one file."""
