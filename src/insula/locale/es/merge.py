"""Lo que dice insula merge, en español."""

TEXTS = {
    "working": "fusionando",
    "target_is_folder": "{path} es una carpeta; nombra el fichero que se escribirá",
    "target_exists": "{path} ya existe; --force lo sobrescribe",
    "same_file": "{path} es el propio modelo base; escribe en otro fichero",
    "bad_scale": "--scale debe ser un número finito, no {value}",
    "done": "{path} está escrito ({size}): un adaptador de rango {rank} cambió {tensors} pesos, en {rms} de media cuadrática",
}
