"""Lo que dice insula quantize, en español."""

TEXTS = {
    "target_is_folder": "{path} es una carpeta; nombra el fichero que se escribirá",
    "target_exists": "{path} ya existe; --force lo sobrescribe",
    "same_file": "{path} es el fichero que se lee; escribe en otro",
    "working": "cuantizando",
    "quality": "{bits} bits por peso; error cuadrático medio {rmse}",
    "done": "{path} está escrito ({before} -> {after})",
    "no_such_format": "no existe el formato {name!r}; existen: {known}",
}
