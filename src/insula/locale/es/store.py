"""Lo que dicen cp, prune, export, import, create y lock, en español."""

TEXTS = {
    "copied": "{name} significa lo mismo que {source}",
    "would_prune": "se borrarían {files} ficheros sin uso ({freed})",
    "target_exists": "{path} ya existe; añade --force para sobrescribir un fichero",
    "exported": "hay {count} modelo(s) en {path} ({size})",
    "bundle_has_names": "un paquete trae los nombres de sus modelos, y sus ficheros al almacén; --name y --in-place son para un fichero .gguf",
    "no_modelfile": "no hay ningún Modelfile {path}; nombra uno con --file, o escribe uno que empiece por FROM",
    "bad_modelfile": "{path} no es un Modelfile: no es un fichero de texto, o es demasiado largo",
    "bad_template": "la TEMPLATE del Modelfile no funciona: {reason}",
    "lock_nothing_named": "nombra los modelos que ya no quieres fijar",
    "lock_empty": "{path} no fija nada; insula lock MODEL fija un modelo",
    "lock_state": "ESTADO",
    "lock_same": "como se fijó",
    "lock_changed": "HA CAMBIADO, no se usa",
    "lock_missing": "no está aquí",
}
