"""Lo que dice insula convert, en español."""

TEXTS = {
    "working": "convirtiendo",
    "bad_dtype": "--dtype es {value!r}; existen: {known}",
    "bad_size": "--max-shard-size es {value!r}; hace falta un tamaño como 500M o 5G",
    "shard_is_for_folders": "--max-shard-size es para carpetas; {path} se convierte en un solo fichero GGUF",
    "folder_exists": "{path} ya existe; una carpeta nunca se sobrescribe: nombra otra, o bórrala",
    "file_exists": "{path} ya existe; --force lo sobrescribe",
    "joined": "las {count} partes del modelo son ahora un solo fichero",
    "joined_as_they_are": "{path} es una de varias partes, que se unen como están, sin --dtype ni --max-shard-size; convierte luego el fichero entero",
    "wrote_file": "{path} está escrito ({size})",
    "wrote_folder": "{path} está escrita ({size} en {files} safetensors)",
}
