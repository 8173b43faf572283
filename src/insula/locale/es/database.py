"""Lo que dice el fichero de datos cuando no se puede usar, en español."""

TEXTS = {
    "not_installed": "esto necesita las partes del servidor; instálalas con: pip install 'insula[server]'",
    "plain_apsw": "el paquete apsw ocupa el sitio de apsw-sqlite3mc; ejecuta: pip uninstall apsw && pip install --force-reinstall apsw-sqlite3mc",
    "cannot_open": "no se puede abrir {path}: {reason}",
    "empty": "{path} está vacío, y por sí solo nunca lo está: algo se ha perdido; pon una copia en su lugar, o bórralo para empezar de nuevo",
    "not_encrypted": "{path} no está cifrado y se ha dado una clave; quita INSULA_STORE_KEY, o empieza con un INSULA_HOME vacío",
    "not_ours": "{path} es la base de datos de otro programa; llévala a otro sitio",
    "wrong_key": "{path} no se abre: está cifrado con otra clave que la dada (INSULA_STORE_KEY, INSULA_STORE_KEY_FILE), o no es una base de datos; no se ha cambiado nada",
    "newer": "{path} es de la versión {found} y este Insula conoce la {known}; actualízalo con: pip install -U insula",
    "busy": "otro proceso está escribiendo en {path} demasiado tiempo; vuelve a intentarlo",
    "full": "{path} no puede crecer: se ha llegado al límite del disco, de una cuota o de un permiso; haz sitio y vuelve a intentarlo",
    "too_many_files": "no se puede abrir {path}: este proceso tiene demasiados ficheros abiertos; sube ulimit -n o vuelve a intentarlo más tarde",
    "io": "no se puede leer o escribir {path}: {reason}; mira el disco",
    "closed": "{path} está cerrado",
    "damaged": "{path} está dañado; pon una copia en su lugar",
    "read_only": "no se puede escribir en {path}; mira sus permisos",
}
