"""What cp, prune, export, import, create and lock say, in English."""

TEXTS = {
    "copied": "{name} means what {source} means",
    "would_prune": "{files} unused files would be removed ({freed})",
    "target_exists": "{path} is there already; add --force to overwrite a file",
    "exported": "{count} model(s) are in {path} ({size})",
    "bundle_has_names": "a bundle brings its models' names, and its files into the store; --name and --in-place are for a .gguf file",
    "no_modelfile": "there is no Modelfile {path}; name one with --file, or write one that begins with FROM",
    "bad_modelfile": "{path} is not a Modelfile: it is no text file, or too long",
    "bad_template": "the Modelfile's TEMPLATE does not work: {reason}",
    "lock_nothing_named": "name the models whose pins are to go",
    "lock_empty": "{path} pins nothing; insula lock MODEL pins a model",
    "lock_state": "STATE",
    "lock_same": "as pinned",
    "lock_changed": "CHANGED, not used",
    "lock_missing": "not here",
}
