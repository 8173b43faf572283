"""What insula rm says, in English."""

TEXTS = {
    "nothing_named": "name the models to remove, or use --unused",
    "not_ours": "{name} belongs to {program}; remove it there",
    "removed": "{name} is removed ({freed} freed)",
    "pruned": "{files} unused files are removed ({freed} freed)",
    "damaged": "{name} is removed; what it said could not be read, so files of its own may be left, which insula prune takes",
}
