"""What the store's file says when it cannot be used, in English."""

TEXTS = {
    "not_installed": "this needs the server's parts; install them with: pip install 'insula[server]'",
    "plain_apsw": "the package apsw stands where apsw-sqlite3mc belongs; run: pip uninstall apsw && pip install --force-reinstall apsw-sqlite3mc",
    "cannot_open": "{path} cannot be opened: {reason}",
    "empty": "{path} is empty, which it never is of itself: something was lost; put a backup in its place, or remove the file to begin anew",
    "not_encrypted": "{path} is not encrypted, and a key was given; leave INSULA_STORE_KEY out, or begin with an empty INSULA_HOME",
    "not_ours": "{path} is another program's database; move it away",
    "wrong_key": "{path} does not open: it is encrypted with another key than the one given (INSULA_STORE_KEY, INSULA_STORE_KEY_FILE), or it is no database; nothing was changed",
    "newer": "{path} is of version {found} and this Insula knows {known}; update it with: pip install -U insula",
    "busy": "{path} is in use by another process, which writes for too long; try again",
    "full": "{path} cannot grow: the disk, a quota or a limit is reached; make room and try again",
    "too_many_files": "{path} cannot be opened: this process has too many files open; raise ulimit -n or try again later",
    "io": "{path} cannot be read or written: {reason}; look at the disk",
    "closed": "{path} is closed",
    "damaged": "{path} is damaged; put a backup in its place",
    "read_only": "{path} cannot be written; look at its permissions",
}
